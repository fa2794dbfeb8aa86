"""Compensation: what stays is refitted, in closed form, to give what the original gives on calibration data."""

from secateur.compensation.compensate import Compensation as Compensation
from secateur.compensation.compensate import compensate_ as compensate_
from secateur.compensation.compensate import method as method
from secateur.compensation.compensate import refit_ as refit_
from secateur.compensation.refitting import How as How
from secateur.compensation.refitting import Refit as Refit
