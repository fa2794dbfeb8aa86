"""Last month's plan on this month's weights: does it fit, is it proved, is it still a good one?"""

from secateur.replaying.agreement import AxisAgreement as AxisAgreement
from secateur.replaying.agreement import Stability as Stability
from secateur.replaying.agreement import stability as stability
from secateur.replaying.replay import Replay as Replay
from secateur.replaying.replay import replay as replay
from secateur.replaying.verdict import Verdict as Verdict
from secateur.replaying.verdict import verdict as verdict
