"""What QGIS makes of files, as JSON by path; run by the Python that has QGIS, which has not ours.

A style (``.qml``) beside a raster is taken by QGIS itself. Points get a label each, as by a person.
"""

import json
import sys

from qgis import core
from qgis.PyQt.QtCore import QSize

SIDE_PX = 64


def about(layer):
    """Whether a layer is valid, where it lies, and how many colours it is drawn in."""
    seen = core.QgsMapSettings()
    seen.setLayers([layer])
    seen.setDestinationCrs(layer.crs())
    seen.setExtent(layer.extent())
    seen.setOutputSize(QSize(SIDE_PX, SIDE_PX))
    job = core.QgsMapRendererParallelJob(seen)
    job.start()
    job.waitForFinished()
    image = job.renderedImage()
    colours = {image.pixel(x, y) for x in range(SIDE_PX) for y in range(SIDE_PX)}
    return {"valid": layer.isValid(), "crs": layer.crs().authid(), "colours": len(colours)}


def about_raster(path):
    layer = core.QgsRasterLayer(path, "raster")
    style = layer.renderer()
    classes = [each.label for each in style.classes()] if style.type() == "paletted" else []
    return about(layer) | {"bands": layer.bandCount(), "style": style.type(), "classes": classes}


def about_group(path):
    project = core.QgsProject.instance()
    core.QgsLayerDefinition.loadLayerDefinition(path, project, project.layerTreeRoot())
    return {"layers": [about(layer) for layer in project.mapLayers().values()]}


def about_vectors(path):
    layer = core.QgsVectorLayer(path, "vectors", "ogr")
    told = about(layer) | {"rows": layer.featureCount()}
    label = layer.fields().indexOf("label")
    if label >= 0:
        layer.startEditing()
        for row in layer.getFeatures():
            layer.changeAttributeValue(row.id(), label, "tree")
        told["saved"] = layer.commitChanges()
    return told


if __name__ == "__main__":
    application = core.QgsApplication([], False)
    application.initQgis()
    kinds = {"tif": about_raster, "qlr": about_group}
    told = {path: kinds.get(path.rpartition(".")[2], about_vectors)(path) for path in sys.argv[1:]}
    core.QgsProject.instance().clear()
    print(json.dumps(told))
    application.exitQgis()
