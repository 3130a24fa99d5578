from .aggregation import weighted_average as weighted_average
from .client_app import make_client_app as make_client_app
from .config import FederationConfig as FederationConfig
from .federation import Outcome as Outcome
from .federation import accuracy as accuracy
from .federation import federate as federate
from .federation import load_model as load_model
from .instance_discrimination import byol_loss as byol_loss
from .instance_discrimination import nt_xent_loss as nt_xent_loss
from .instance_discrimination import simsiam_loss as simsiam_loss
from .local_training import LocalResult as LocalResult
from .local_training import local_round as local_round
from .methods import METHODS as METHODS
from .neighbourhood import cosine_gram as cosine_gram
from .neighbourhood import neighbourhood_preserving_loss as neighbourhood_preserving_loss
from .networks import TwinModel as TwinModel
from .objectives import (
    Weights as Weights,
)
from .objectives import (
    gradient_cosine as gradient_cosine,
)
from .objectives import (
    labelled_loss as labelled_loss,
)
from .objectives import (
    partial_data_loss as partial_data_loss,
)
from .objectives import (
    proximal_term as proximal_term,
)
from .objectives import (
    unlabelled_loss as unlabelled_loss,
)
from .partition import Partition as Partition
from .partition import client_data as client_data
from .partition import draw_partition as draw_partition
from .pseudo_labels import FreeMatchThreshold as FreeMatchThreshold
from .pseudo_labels import consistency_loss as consistency_loss
from .pseudo_labels import fixmatch_loss as fixmatch_loss
from .pseudo_labels import freematch_loss as freematch_loss
from .server_app import make_server_app as make_server_app
from .simulation import simulate as simulate
from .strategy import TwinStrategy as TwinStrategy
