"""Saved results on the Hugging Face Hub: safetensors, JSON and a model card, and no pickle anywhere."""

from secateur.hub.mixin import HubMixin as HubMixin
from secateur.hub.sharing import Source as Source
from secateur.hub.sharing import from_pretrained as from_pretrained
from secateur.hub.sharing import push_to_hub as push_to_hub
from secateur.hub.sharing import source as source
