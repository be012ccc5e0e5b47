"""Sentinel-2 products as ESA hands them out, small: a .SAFE folder or its .zip."""

import shutil
from pathlib import Path

import numpy as np
import rasterio
from affine import Affine

from l2a_scenes import BANDS, BANDS_20M, at_20m, with_dn_offset

CORNER = (787000, 3169320)
_BAND_IDS = ("B01", "B02", "B03", "B04", "B05", "B06", "B07", "B08", "B8A", "B09", "B10", "B11",
             "B12")  # fmt: skip
_METADATA = """\
<?xml version="1.0" encoding="UTF-8"?>
<n1:Level-{level}_User_Product xmlns:n1="https://psd-14.sentinel2.eo.esa.int/PSD/P.xsd">
  <n1:General_Info>
    <Product_Info>
      <PRODUCT_START_TIME>2024-02-03T05:30:21.024Z</PRODUCT_START_TIME>
      <PROCESSING_LEVEL>Level-{level}</PROCESSING_LEVEL>
      <PROCESSING_BASELINE>{baseline}</PROCESSING_BASELINE>
      <Product_Organisation><Granule_List><Granule imageFormat="JPEG2000">
        {images}
      </Granule></Granule_List></Product_Organisation>
    </Product_Info>
    <Product_Image_Characteristics>
      <QUANTIFICATION_VALUES_LIST>
        <{prefix}QUANTIFICATION_VALUE unit="none">10000</{prefix}QUANTIFICATION_VALUE>
      </QUANTIFICATION_VALUES_LIST>
      {offsets}
    </Product_Image_Characteristics>
  </n1:General_Info>
</n1:Level-{level}_User_Product>
"""


def write_product(
    folder: Path,
    reflectance: np.ndarray,
    scl: np.ndarray | None = None,
    baseline: str = "05.10",
    dn_offset: int | None = 1000,
) -> Path:
    """The .SAFE folder of a product: L2A with ``scl`` (20 m), else L1C.

    ``reflectance`` is uint16 (band, row, col) x 10000 at 10 m in the order of ``BANDS``, 0 where
    there is none. ``dn_offset`` is added to what is not 0, and said; None: there is none to say.
    """
    level = "1C" if scl is None else "2A"
    product = folder / f"S2A_MSIL{level}_20240203T053021_N0510_R105_T43RGM_20240203T085531.SAFE"
    images = []
    layers = [*zip(BANDS, reflectance, strict=True)]
    if scl is not None:
        layers.append(("SCL", scl))
    for name, values in layers:
        px = 20 if name == "SCL" or name in BANDS_20M else 10
        if name != "SCL":
            values = at_20m(values) if px == 20 else values
            values = with_dn_offset(values, dn_offset or 0)
        where = f"GRANULE/L{level}_T43RGM/IMG_DATA"
        if scl is not None:
            images.append(f"{where}/R{px}m/T43RGM_20240203T053021_{name}_{px}m")
        else:
            images.append(f"{where}/T43RGM_20240203T053021_{name}")
        path = product / f"{images[-1]}.jp2"
        path.parent.mkdir(parents=True, exist_ok=True)
        with rasterio.open(
            path, "w", driver="JP2OpenJPEG", count=1, height=values.shape[0],
            width=values.shape[1], dtype=values.dtype, crs="EPSG:32643",
            transform=Affine(px, 0, CORNER[0], 0, -px, CORNER[1]), QUALITY="100",
            REVERSIBLE="YES", YCBCR420="NO", BLOCKXSIZE=64, BLOCKYSIZE=64,
        ) as file:  # fmt: skip
            file.write(values, 1)
    if scl is not None:  # the same bands at 20 m, which are not to be taken
        images += [image.replace("R10m", "R20m").replace("_10m", "_20m") for image in images[:3]]
    tag, prefix = ("RADIO_ADD_OFFSET", "") if scl is None else ("BOA_ADD_OFFSET", "BOA_")
    offsets = "" if dn_offset is None else "\n".join(
        f'<{tag} band_id="{number}">{-dn_offset}</{tag}>' for number in range(len(_BAND_IDS))
    )  # fmt: skip
    listed = "\n".join(f"<IMAGE_FILE>{image}</IMAGE_FILE>" for image in images)
    (product / f"MTD_MSIL{level}.xml").write_text(_METADATA.format(
        level=level, baseline=baseline, images=listed, prefix=prefix, offsets=offsets,
    ))  # fmt: skip
    return product


def zipped(product: Path) -> Path:
    """The .zip of a product, beside it."""
    name = str(product.with_suffix(""))
    return Path(shutil.make_archive(name, "zip", product.parent, product.name))
