"""Compensation: what stays is refitted, in closed form, to give what the original gives on calibration data."""

from secateur.compensation.compensate import Compensation as Compensation
from secateur.compensation.compensate import compensate_ as compensate_
