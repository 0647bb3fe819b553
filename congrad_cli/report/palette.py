"""The colours of the heat map: blue agrees, orange conflicts, as people of all eyes tell apart."""

from congrad_cli.report.geometry import STEPS

Colour = tuple[int, int, int]
LIGHT: tuple[Colour, Colour, Colour] = ((246, 246, 244), (24, 90, 157), (181, 71, 8))
DARK: tuple[Colour, Colour, Colour] = ((38, 42, 48), (99, 174, 240), (242, 140, 62))
"""The middle, full agreement, full conflict."""


def shades(dark: bool) -> str:
    """CSS rules for the classes ``s-10`` to ``s10``: the square's colour, and its number's."""
    middle, agree, conflict = DARK if dark else LIGHT
    rules = []
    for step in range(-STEPS, STEPS + 1):
        colour = _mix(middle, agree if step > 0 else conflict, abs(step) / STEPS)
        text = "#fff" if _luminance(colour) < 0.36 else "#16181b"
        rules.append(f".s{step} rect{{fill:{_hex(colour)}}}.s{step} text{{fill:{text}}}")
    return "\n".join(rules)


def _mix(one: Colour, two: Colour, share: float) -> Colour:
    red, green, blue = (round(a + (b - a) * share) for a, b in zip(one, two, strict=True))
    return red, green, blue


def _hex(colour: Colour) -> str:
    return "#" + "".join(f"{part:02x}" for part in colour)


def _luminance(colour: Colour) -> float:
    """Relative luminance (WCAG 2), 0 to 1."""
    linear = [(part / 255 / 12.92) if part <= 10 else ((part / 255 + 0.055) / 1.055) ** 2.4
              for part in colour]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
