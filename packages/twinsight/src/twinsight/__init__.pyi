from .config import METHODS as METHODS
from .config import FederationConfig as FederationConfig
from .data.partition import Partition as Partition
from .data.partition import client_data as client_data
from .data.partition import draw_partition as draw_partition
from .evaluation.inference import accuracy as accuracy
from .method.contrastive import byol_loss as byol_loss
from .method.contrastive import nt_xent_loss as nt_xent_loss
from .method.contrastive import simsiam_loss as simsiam_loss
from .method.losses import (
    Weights as Weights,
)
from .method.losses import cosine_gram as cosine_gram
from .method.losses import (
    gradient_cosine as gradient_cosine,
)
from .method.losses import (
    labelled_loss as labelled_loss,
)
from .method.losses import neighbourhood_preserving_loss as neighbourhood_preserving_loss
from .method.losses import (
    partial_data_loss as partial_data_loss,
)
from .method.losses import (
    proximal_term as proximal_term,
)
from .method.losses import (
    unlabelled_loss as unlabelled_loss,
)
from .method.pseudo_labels import FreeMatchThreshold as FreeMatchThreshold
from .method.pseudo_labels import consistency_loss as consistency_loss
from .method.pseudo_labels import fixmatch_loss as fixmatch_loss
from .method.pseudo_labels import freematch_loss as freematch_loss
from .models import TwinModel as TwinModel
from .pipeline.simulation import simulate as simulate
from .training.client_app import make_client_app as make_client_app
from .training.local_training import LocalResult as LocalResult
from .training.local_training import local_round as local_round
from .training.loop import Outcome as Outcome
from .training.loop import federate as federate
from .training.loop import load_model as load_model
from .training.server_app import make_server_app as make_server_app
from .training.strategy import TwinStrategy as TwinStrategy
from .training.strategy import weighted_average as weighted_average
