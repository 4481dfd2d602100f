"""Load a model, and say where its sites are."""

from tether.models.backbone import Backbone, ImageSpec
from tether.models.load import load
from tether.models.model import Model
from tether.models.site import Select, Site
from tether.models.sites import sites
from tether.models.text import unique_rows

__all__ = ["Backbone", "ImageSpec", "Model", "Select", "Site", "load", "sites", "unique_rows"]
