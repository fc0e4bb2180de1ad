"""What stops the machine in the evaluation, as the edge module's own configuration: committed and fixed."""

import json

from . import femto, motor
from .recordings import FEMTO_AXES, FEMTO_SAMPLES

# Snapshots of a bearing come every ten seconds, or thinned; each is judged as if it came so long after the one before.
FEMTO_RHYTHM_S = 10
# A limit holds its last value until the next. A delay between one and two rhythms asks for two snapshots running.
FEMTO_ON_DELAY_S = 15


def motor_configuration(bundle, machines, axis):
    """The motor's: one bundle, the sensors of one axis, votes. The machine trips when either axis's votes do."""
    text = f"[model]\nbundle-dir = {quoted(str(bundle.resolve()))}\n"
    for machine in machines:
        text += (
            f"\n[[machines]]\nid = {quoted(machine)}\nscored-sensors = [{quoted(sensor(machine, axis))}]\n"
            f"votes = {motor.VOTES}\nof = {motor.VOTES_OF}\n"
        )
    return text


def femto_configuration(machines):
    """The bearings': no model, a limit on `rms-steady` of each axis."""
    text = f"[vibration]\nwindow-samples = {FEMTO_SAMPLES}\nhop-samples = {FEMTO_SAMPLES}\n"
    for machine in machines:
        text += f"\n[[machines]]\nid = {quoted(machine)}\n"
        for axis in FEMTO_AXES:
            text += (
                f"  [[machines.limits]]\n  name = {quoted(f'steady-level-{axis}')}\n"
                f"  sensor = {quoted(sensor(machine, axis))}\n  quantity = {quoted(femto.LIMIT_FEATURE)}\n"
                f'  above = {femto.LIMIT_G}\n  on-delay = "{FEMTO_ON_DELAY_S}s"\n'
            )
    return text


def sensor(machine, axis):
    return f"{machine}/{axis.lower()}"


def quoted(text):
    """A TOML string: JSON's escapes are TOML's."""
    return json.dumps(text)
