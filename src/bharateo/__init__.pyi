"""The public API: every name once, as type checkers read it and ``__init__.py`` does, too."""

# Configuration
from bharateo.config import Config as Config
from bharateo.config import load_config as load_config
from bharateo.config import with_settings as with_settings
from bharateo.verbs.demo import choose_pixels as choose_pixels

# What the verbs make, and where they say what they do
from bharateo.chips.store import Dataset as Dataset
from bharateo.display import Display as Display
from bharateo.training.run import Run as Run

# One function a verb
from bharateo.verbs.composite import write_composite as write_composite
from bharateo.verbs.demo import demo as demo
from bharateo.verbs.doctor import doctor as doctor
from bharateo.verbs.finetune import finetune as finetune
from bharateo.verbs.ground import embed as embed
from bharateo.verbs.ground import explore as explore
from bharateo.verbs.ground import export as export
from bharateo.verbs.ground import map_raster as map_raster
from bharateo.verbs.ground import search as search
from bharateo.verbs.ground import teach as teach
from bharateo.verbs.hectares import hectares as hectares
from bharateo.verbs.hectares import polygons as polygons
from bharateo.verbs.machine import tokens as tokens
from bharateo.verbs.pipeline import build as build
from bharateo.verbs.pipeline import evaluate as evaluate
from bharateo.verbs.pipeline import pretrain as pretrain
from bharateo.verbs.pipeline import write_report as write_report
from bharateo.verbs.schema import schema as schema
from bharateo.verbs.scores import ablate as ablate
from bharateo.verbs.scores import probe as probe
from bharateo.verbs.scores import probe_task as probe_task
from bharateo.verbs.scores import score_search as score_search
from bharateo.verbs.survey import areas as areas
from bharateo.verbs.survey import change as change
from bharateo.verbs.survey import sample as sample

# What some take and give: how to read a raster, what is counted
from bharateo.accounting import Accounting as Accounting
from bharateo.reading import Reading as Reading

# Places, pixels and classes
from bharateo.landcover import BHARATEO_CLASSES as BHARATEO_CLASSES
from bharateo.landcover import ClassScheme as ClassScheme
from bharateo.landcover import WORLDCOVER as WORLDCOVER
from bharateo.regions import Roi as Roi
from bharateo.regions import parse_roi as parse_roi
from bharateo.sensor import Sensor as Sensor
from bharateo.sources.sample import write_sample as write_sample

# Patches, masks and models
from bharateo.handover.hub import BharatEOEncoder as BharatEOEncoder
from bharateo.inference.encoder import FrozenEncoder as FrozenEncoder
from bharateo.models.heads import Batch as Batch
from bharateo.models.patches import Mask as Mask
from bharateo.models.patches import mask_from_noise as mask_from_noise
from bharateo.models.patches import num_masked as num_masked
from bharateo.models.patches import patchify as patchify
from bharateo.models.patches import unpatchify as unpatchify
from bharateo.training.data import fixed_batches as fixed_batches
from bharateo.training.samples import ChipDataset as ChipDataset

# Looking at chips and at what a run makes of them
from bharateo.evaluation.reconstruction import Example as Example
from bharateo.evaluation.reconstruction import reconstruct as reconstruct
from bharateo.report.panels import Panel as Panel
from bharateo.report.panels import class_panels as class_panels
from bharateo.report.panels import error_panels as error_panels
from bharateo.report.panels import error_top as error_top
from bharateo.report.panels import label_panels as label_panels
from bharateo.report.panels import reconstruction_panels as reconstruction_panels
from bharateo.report.panels import token_panels as token_panels
from bharateo.report.render import class_rgb as class_rgb
from bharateo.report.render import composite_rgb as composite_rgb

# Figures of a notebook: the last line of a cell
from bharateo.report.notebook import Figure as Figure
from bharateo.report.notebook import show_account as show_account
from bharateo.report.notebook import show_chips as show_chips
from bharateo.report.notebook import show_confusion as show_confusion
from bharateo.report.notebook import show_curves as show_curves
from bharateo.report.notebook import show_map as show_map
from bharateo.report.notebook import show_patch_classes as show_patch_classes
from bharateo.report.notebook import show_picture as show_picture
from bharateo.report.notebook import show_probes as show_probes
from bharateo.report.notebook import show_reconstructions as show_reconstructions
from bharateo.report.notebook import show_regions as show_regions
from bharateo.report.notebook import show_scores as show_scores
from bharateo.report.notebook import show_tokens as show_tokens

# The base of all errors raised on purpose; the others are in bharateo.errors
from bharateo.errors import BharatEOError as BharatEOError

# The version
from bharateo.version import __version__ as __version__
