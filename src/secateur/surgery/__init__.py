"""The only place where a model is changed: re-indexing, attribute updates, graph rewriting."""

from secateur.surgery.apply import apply as apply
from secateur.surgery.apply import apply_ as apply_
from secateur.surgery.reindex import index as index
