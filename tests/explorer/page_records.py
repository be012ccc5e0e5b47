"""The records of a written page, and the arrays in them."""

import base64
import gzip
import json

import numpy as np


def record(folder, name):
    text = (folder / "data" / f"{name}.js").read_text()
    return json.loads(text.removeprefix(f'explorer.register("{name}",').removesuffix(");\n"))


def array(packed):
    content = gzip.decompress(base64.b64decode(packed["gzip"]))
    return np.frombuffer(content, packed["dtype"]).reshape(packed["shape"])
