"""The domain that a concept was learned in, among the domain files of this computer."""

from __future__ import annotations

from ....e4t_core.concept import Concept
from ....e4t_core.files.domain_file import DomainFileError, load_domain, read_domain_info
from ....e4t_core.methods.e4t.domain import Domain
from ..model_folders import domain_names, domain_path


class DomainMissingError(ValueError):
    """A domain that a concept needs and that is not installed."""


def find_domain(concept: Concept) -> Domain | None:
    """The domain of a concept by its content; none for methods without one.

    Raises:
        DomainMissingError: it is not installed; the message says its name and the beginning of its hash.
    """
    if not concept.domain_fingerprint:
        return None
    named = []
    for name in domain_names():
        try:
            if read_domain_info(domain_path(name)).name == concept.domain_name:
                named.append(name)
                domain = load_domain(domain_path(name))
                if domain.fingerprint == concept.domain_fingerprint:
                    return domain
        except DomainFileError:
            continue
    other = f" ({', '.join(named)} has this name, but other content)" if named else ""
    raise DomainMissingError(
        f"{concept.trigger!r} needs the domain {concept.domain_name!r} with the hash {concept.domain_fingerprint[:12]}, which is"
        f" not in models/e4t_domains{other}: put that domain file there."
    )
