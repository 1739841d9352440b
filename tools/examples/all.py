"""Every example by its name."""

from tools.examples import galip, glide, glide_shapes, layers, sd15, shapes
from tools.examples.plan import Example

FAMILIES = (shapes, layers, galip, sd15, glide, glide_shapes)
EXAMPLES_BY_NAME: dict[str, Example] = {
    example.name: example for family in FAMILIES for example in (make() for make in family.MAKERS)
}
