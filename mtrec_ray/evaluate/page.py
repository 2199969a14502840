"""What all pages share: their frame and colours (`page.html.j2`), and how figures come into them."""

from collections.abc import Callable
from typing import Any

from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined, Template
from markupsafe import Markup, escape
from matplotlib.axes import Axes

from mtrec_ray.evaluate import figures

WIDE = (9.6, 3.6)
"""Width and height, in inches, of a figure over the whole width of the page."""


def template(name: str, package: str = "mtrec_ray.evaluate") -> Template:
    """A template of `package`, which extends `page.html.j2`; a name that is not filled in is an error."""
    packages = dict.fromkeys([package, "mtrec_ray.evaluate"])
    environment = Environment(
        loader=ChoiceLoader([PackageLoader(package, ".") for package in packages]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(name)


class Pen:
    """Draws figures and gives each a name of its own within the page."""

    def __init__(self) -> None:
        self.drawn = 0

    def draw(self, paint: Callable[[Axes], None], title: str, caption: str, wide: bool = False) -> dict[str, Any]:
        """What the macro `drawing` shows; a `wide` figure takes the whole width of the page."""
        self.drawn += 1
        size = WIDE if wide else (figures.WIDTH, figures.HEIGHT)
        svg = figures.draw(paint, f"figure{self.drawn}", str(escape(title)), *size)
        return {"title": title, "caption": caption, "svg": Markup(svg), "wide": wide}


def counted(number: int, one: str, many: str) -> str:
    """`1 worker`, `2 workers`."""
    return f"{number:,} {one if number == 1 else many}"
