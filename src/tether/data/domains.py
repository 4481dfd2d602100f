"""How one shifted domain is scored where that is not as the rest: among which classes, and by which prompts."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from tether.data.prompts import templates
from tether.data.records import Example, Split, distinct
from tether.errors import TetherError, near_misses

DomainClasses = Literal["all", "present", "own"]


@dataclass(frozen=True, kw_only=True)
class DomainConfig:
    """Among which classes the test pictures of a shifted domain are told apart, and by which prompts.

    Args:
        classes: "all" that are trained on; "present", of these only those that the domain has pictures of, as
            ImageNet-R is scored; or "own", other ones, which a model with a text tower knows by their names alone.
        class_names: a file of names for classes of its own, as for `tether.data.FolderConfig`.
        templates: of its prompts: name of a template set, a template, or several; None for those of the data set.

    Raises:
        TetherError: there is no such choice of classes or template set, or names are given without own classes.
    """

    classes: DomainClasses = "all"
    class_names: str | None = None
    templates: str | Sequence[str] | None = None

    def __post_init__(self) -> None:
        if self.classes not in (known := get_args(DomainClasses)):
            raise TetherError(
                f"The classes of a domain are {self.classes!r}{near_misses(self.classes, known)}"
            )
        if self.class_names and self.classes != "own":
            raise TetherError(
                f"class_names of a domain are names of its own classes; with classes={self.classes!r} it has the names "
                "of the data set. Say classes='own', or leave class_names out."
            )
        if self.templates is not None:
            templates(self.templates)

    def split(
        self, domain: str, examples: Iterable[Example], class_names: tuple[str, ...] | None = None
    ) -> Split:
        """The test split of a domain.

        Args:
            class_names: its own, where it has some.

        Raises:
            TetherError: two of its own classes have the same name, or it has one alone.
        """
        examples = tuple(examples)
        mask = None
        convention = "scored over all classes"
        if self.classes == "present":
            mask = tuple(sorted({example.label for example in examples}))
            convention = f"masked: scored over its {len(mask)} classes"
        if class_names is not None:
            if len(distinct(class_names)) < 2:
                raise TetherError(
                    f"The domain {domain!r} has only the class {class_names[0]!r} of its own; there is nothing to tell "
                    "apart. Add pictures of others."
                )
            convention = f"scored over {len(class_names)} classes of its own"
        prompts = None if self.templates is None else templates(self.templates)
        if prompts:
            more = f" and {len(prompts) - 3} more" if len(prompts) > 3 else ""
            convention += f", by prompts of its own: {', '.join(map(repr, prompts[:3]))}{more}"
        return Split(
            name=f"test {domain}",
            domain=domain,
            examples=examples,
            class_mask=mask,
            convention=convention,
            class_names=class_names,
            templates=prompts,
        )


def check_shifted(shifted: Iterable[str], home: str) -> None:
    """Refuse names of shifted domains of which one is that of the in-distribution domain.

    Raises:
        TetherError: it is.
    """
    if home in shifted:
        raise TetherError(
            f"The domain {home!r} is the in-distribution one; a shifted one needs another name."
        )


def check_domains(
    domains: Mapping[str, DomainConfig], shifted: Sequence[str], in_distribution: str | None
) -> None:
    """Refuse rules for a domain that is no shifted one.

    Raises:
        TetherError: there is such a domain.
    """
    for name in domains:
        if name == in_distribution:
            raise TetherError(
                f"domains.{name}: the in-distribution domain has the classes and templates of the data set; only "
                "shifted ones may have others."
            )
        if name not in shifted:
            raise TetherError(f"domains: there is no shifted domain {name!r}{near_misses(name, shifted)}")
