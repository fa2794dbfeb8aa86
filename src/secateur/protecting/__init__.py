"""Data whose behaviour must not change: what is protected, what that asks of scores and refits, and what it cost."""

from secateur.protecting.settings import Protect as Protect
from secateur.protecting.settings import settled as settled
