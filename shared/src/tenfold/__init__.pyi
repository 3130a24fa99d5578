from . import cli as cli
from . import config as config
from . import data as data
from . import files as files
from . import images as images
from . import metrics as metrics
from . import runs as runs
from .errors import UserError as UserError
