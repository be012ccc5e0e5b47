"""Probes: small classifiers on frozen features. What a feature is worth is what they reach.

Features are standardised with the mean and deviation of the training examples alone, and what can
be chosen (regularisation, neighbours, size of leaves) is chosen on the validation examples alone:
of probes that give probabilities what has the least log-loss, of others what has the best macro-F1
over their classes, of equals the first. No class is weighted.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Protocol, TypeVar, runtime_checkable

import numpy as np
from jaxtyping import Float, Int64, Shaped
from pydantic import ConfigDict, Field, StringConstraints

from bharateo.artefacts import Record, checked, parse_json, shortened
from bharateo.errors import DatasetError
from bharateo.evaluation.scores import macro_f1
from bharateo.files import open_file, write_bytes
from bharateo.landcover import NUM_CLASSES

if TYPE_CHECKING:
    from sklearn.ensemble import RandomForestClassifier

STRENGTHS = (1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0, 100.0)
"""Inverse regularisation of the linear probe to choose from (scikit-learn's ``C``)."""

NEIGHBOURS = (1, 5, 20)
LEAVES = (1, 5, 20)
"""Fewest examples in a leaf of the random forest, to choose from."""

NUM_TREES = 100
MOST_ITERATIONS = 100
"""Of the linear probe; three times as many changed no macro-F1 by more than 0.001."""

LEAST_PROBABILITY = 1e-6
"""What a log-loss takes for the probability of a class that was given less, or never shown."""

_CONSTANT = 1e-6
"""Deviation below which a feature is taken for constant and only centred."""

PROBE_SCHEMA = 1


@runtime_checkable
class Probe(Protocol):
    """A fitted probe."""

    @property
    def chosen(self) -> float:
        """The strength, number of neighbours or size of leaves."""
        ...

    def predict(self, features: Float[np.ndarray, "example dim"]) -> Int64[np.ndarray, " example"]:
        """The class id of every example."""
        ...


@runtime_checkable
class Likelihoods(Probe, Protocol):
    """A probe that also gives probabilities."""

    @property
    def classes(self) -> Int64[np.ndarray, " cls"]:
        """Class ids."""
        ...

    def probabilities(
        self, features: Float[np.ndarray, "example dim"]
    ) -> Float[np.ndarray, "example cls"]:
        """Probability of every class of ``classes``."""
        ...


P = TypeVar("P", bound=Probe)


def log_losses(
    probe: Likelihoods,
    features: Float[np.ndarray, "example dim"],
    labels: Int64[np.ndarray, " example"],
) -> Float[np.ndarray, " example"]:
    """Minus the logarithm of the probability of every example's class, in nats."""
    own = labels[:, None] == probe.classes
    given = np.where(own, probe.probabilities(features), 0.0).sum(1)
    losses: np.ndarray = -np.log(np.maximum(given, LEAST_PROBABILITY))
    return losses


@dataclass(frozen=True)
class LinearProbe:
    """Multinomial logistic regression: probabilities = softmax((x - mean) / std @ weight + bias).

    ``classes`` are the class ids its columns stand for; ``chosen`` is the regularisation.
    """

    mean: Float[np.ndarray, " dim"]
    std: Float[np.ndarray, " dim"]
    weight: Float[np.ndarray, "dim cls"]
    bias: Float[np.ndarray, " cls"]
    classes: Int64[np.ndarray, " cls"]
    chosen: float

    def logits(self, features: Float[np.ndarray, "*lead dim"]) -> Float[np.ndarray, "*lead cls"]:
        """What the softmax is taken of."""
        logits: np.ndarray = (features - self.mean) / self.std @ self.weight + self.bias
        return logits

    def probabilities(
        self, features: Float[np.ndarray, "*lead dim"]
    ) -> Float[np.ndarray, "*lead cls"]:
        """Probability of every class of ``classes``."""
        logits = self.logits(features)
        odds = np.exp(logits - logits.max(-1, keepdims=True))
        shares: np.ndarray = odds / odds.sum(-1, keepdims=True)
        return shares

    def predict(self, features: Float[np.ndarray, "*lead dim"]) -> Int64[np.ndarray, "*lead"]:
        """The most probable class id."""
        chosen: np.ndarray = self.classes[self.probabilities(features).argmax(-1)]
        return chosen


def fit_linear(
    features: Float[np.ndarray, "example dim"],
    labels: Int64[np.ndarray, " example"],
    val_features: Float[np.ndarray, "val_example dim"] | None = None,
    val_labels: Int64[np.ndarray, " val_example"] | None = None,
    strengths: Sequence[float] = STRENGTHS,
) -> LinearProbe:
    """The linear probe with the strength that has the least log-loss on the validation examples.

    Weaker regularisation is tried as long as it helps: along the path the loss falls, then rises.
    Without validation examples the middle strength is taken.

    Raises:
        DatasetError: the labels are of fewer than two classes.
    """
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression
    from threadpoolctl import threadpool_limits

    _check_classes(labels)
    mean, std = standardisation(features)
    scaled = (features - mean) / std
    # From strong to weak regularisation, each from where the last one ended.
    model = LogisticRegression(max_iter=MOST_ITERATIONS, warm_start=True)

    def fit(strength: float) -> LinearProbe:
        with warnings.catch_warnings():
            # Hardly regularised ones may not get there; validation takes them as they are.
            warnings.simplefilter("ignore", ConvergenceWarning)
            model.set_params(C=strength).fit(scaled, labels)
        weight, bias = model.coef_.T.copy(), model.intercept_.copy()
        if weight.shape[1] == 1:  # two classes: scikit-learn keeps the second one's logit
            weight, bias = np.hstack([-weight, weight]) / 2, np.array([-bias[0], bias[0]]) / 2
        return LinearProbe(mean, std, weight, bias, model.classes_, strength)

    # Products this thin gain nothing from threads, and on a busy machine wait for each other.
    with threadpool_limits(1):
        first, *weaker = sorted(strengths)
        if val_features is None or val_labels is None or not len(val_labels):
            return fit(sorted(strengths)[len(strengths) // 2])
        best = fit(first)
        least = log_losses(best, val_features, val_labels).mean()
        for strength in weaker:
            probe = fit(strength)
            loss = log_losses(probe, val_features, val_labels).mean()
            if loss >= least:
                break
            best, least = probe, loss
        return best


@dataclass(frozen=True)
class NearestProbe:
    """The commonest class among the ``chosen`` nearest examples by cosine of their features.

    Of classes equally common the nearest example's wins, or else the lowest.
    """

    mean: Float[np.ndarray, " dim"]
    std: Float[np.ndarray, " dim"]
    examples: Float[np.ndarray, "example dim"]
    labels: Int64[np.ndarray, " example"]
    chosen: int

    def predict(self, features: Float[np.ndarray, "query dim"]) -> Int64[np.ndarray, " query"]:
        """The class ids that the neighbours vote for."""
        return _vote(self.nearest_labels(features)[:, : self.chosen])

    def nearest_labels(
        self, features: Float[np.ndarray, "query dim"]
    ) -> Int64[np.ndarray, "query neighbour"]:
        """Class ids of the nearest examples, the nearest first, as many as may be chosen."""
        from sklearn.neighbors import NearestNeighbors

        most = min(max(NEIGHBOURS), len(self.labels))
        index = NearestNeighbors(n_neighbors=most, algorithm="brute").fit(self.examples)
        found = index.kneighbors(_directions(features, self.mean, self.std), return_distance=False)
        return self.labels[found]


def fit_nearest(
    features: Float[np.ndarray, "example dim"],
    labels: Int64[np.ndarray, " example"],
    val_features: Float[np.ndarray, "val_example dim"] | None = None,
    val_labels: Int64[np.ndarray, " val_example"] | None = None,
) -> NearestProbe:
    """The nearest-neighbour probe with the number of neighbours chosen on validation.

    Raises:
        DatasetError: the labels are of fewer than two classes.
    """
    _check_classes(labels)
    mean, std = standardisation(features)
    examples = _directions(features, mean, std)
    probe = NearestProbe(mean, std, examples, labels, NEIGHBOURS[len(NEIGHBOURS) // 2])
    if val_features is None or val_labels is None or not len(val_labels):
        return probe
    nearest = probe.nearest_labels(val_features)
    scores = [macro_f1(val_labels, _vote(nearest[:, :num])) for num in NEIGHBOURS]
    return replace(probe, chosen=NEIGHBOURS[int(np.argmax(scores))])


@dataclass(frozen=True)
class ForestProbe:
    """A random forest with at least ``chosen`` examples in every leaf."""

    forest: RandomForestClassifier
    chosen: int

    def predict(self, features: Float[np.ndarray, "example dim"]) -> Int64[np.ndarray, " example"]:
        """The class ids that most trees hold for likely."""
        predicted: np.ndarray = self.forest.predict(features)
        return predicted


def fit_forest(
    features: Float[np.ndarray, "example dim"],
    labels: Int64[np.ndarray, " example"],
    val_features: Float[np.ndarray, "val_example dim"] | None = None,
    val_labels: Int64[np.ndarray, " val_example"] | None = None,
    seed: int = 0,
) -> ForestProbe:
    """The random forest with the size of leaves chosen on validation.

    Raises:
        DatasetError: the labels are of fewer than two classes.
    """
    from sklearn.ensemble import RandomForestClassifier

    _check_classes(labels)

    def fit(leaf: int) -> ForestProbe:
        # One thread: in several, scikit-learn changes warning filters that all of them share.
        forest = RandomForestClassifier(NUM_TREES, min_samples_leaf=leaf, random_state=seed)
        return ForestProbe(forest.fit(features, labels), leaf)

    return _best_on_validation(fit, LEAVES, val_features, val_labels)


def standardisation(
    features: Float[np.ndarray, "example dim"],
) -> tuple[Float[np.ndarray, " dim"], Float[np.ndarray, " dim"]]:
    """Mean and deviation of every feature; 1 for the deviation of a constant one."""
    mean = features.mean(0, dtype=np.float64)
    std = features.std(0, dtype=np.float64)
    std[std < _CONSTANT] = 1
    return mean.astype(features.dtype), std.astype(features.dtype)


def _best_on_validation(
    fit: Callable[[Any], P],
    choices: Sequence[Any],
    val_features: np.ndarray | None,
    val_labels: np.ndarray | None,
) -> P:
    if val_features is None or val_labels is None or not len(val_labels):
        return fit(choices[len(choices) // 2])
    scored = []
    for choice in choices:
        probe = fit(choice)
        scored.append((macro_f1(val_labels, probe.predict(val_features)), probe))
    return max(scored, key=lambda pair: pair[0])[1]


def _directions(features: np.ndarray, mean: np.ndarray, std: np.ndarray) -> np.ndarray:
    """Standardised features of length 1, so that the nearest by distance is that by cosine."""
    scaled = (features - mean) / std
    return scaled / np.maximum(np.linalg.norm(scaled, axis=1, keepdims=True), 1e-12)


def _vote(labels: Int64[np.ndarray, "query neighbour"]) -> Int64[np.ndarray, " query"]:
    classes = np.unique(labels)
    votes = 2 * (labels[:, :, None] == classes).sum(1) + (labels[:, :1] == classes)
    return classes[votes.argmax(1)]


def _check_classes(labels: Shaped[np.ndarray, " example"]) -> None:
    present = np.unique(labels)
    if len(present) < 2:
        raise DatasetError(
            f"a probe needs two classes, its {len(labels)} labels are of {present.tolist()}: "
            "give it labels of more classes"
        )


# On disk


class ProbeAbout(Record):
    """What a probe belongs to, as far as it is read."""

    model_config = ConfigDict(extra="allow")

    weights_sha256: Annotated[str, StringConstraints(max_length=64)] | None = None
    class_names: tuple[Annotated[str, StringConstraints(max_length=200)], ...] | None = None
    band_set: Annotated[str, StringConstraints(max_length=40)] | None = None
    """The set of bands whose features it takes; None: all bands."""


class _Head(Record):
    schema_version: int
    strength: Annotated[float, Field(gt=0, lt=1e30)]
    about: ProbeAbout


_ARRAYS = ("mean", "std", "weight", "bias", "classes")


def save_probe(path: Path, probe: LinearProbe, about: Mapping[str, Any]) -> None:
    """Write a linear probe as safetensors; ``about`` (plain JSON) says what it belongs to.

    Raises:
        StorageError: the disk is full or refuses.
    """
    from safetensors.numpy import save

    arrays = {name: np.ascontiguousarray(getattr(probe, name)) for name in _ARRAYS}
    head = {"schema_version": PROBE_SCHEMA, "strength": probe.chosen, "about": dict(about)}
    content = save(arrays, {"probe": json.dumps(head)})
    write_bytes(path, content)


def load_probe(path: Path) -> tuple[LinearProbe, ProbeAbout]:
    """A linear probe and what was said about it; nothing in the file is executed.

    Raises:
        DatasetError: the file holds no probe, or is damaged.
    """
    from safetensors import SafetensorError, safe_open

    remedy = "it holds no linear probe of bharateo: fit it again"
    try:
        open_file(path).close()  # no pipe is waited for
        with safe_open(path, "np") as file:
            text = (file.metadata() or {}).get("probe", "null")
            arrays = {name: file.get_tensor(name) for name in _ARRAYS}
    except (SafetensorError, OSError, ValueError, TypeError) as error:
        raise DatasetError(f"{path} cannot be read ({shortened(str(error))}); {remedy}") from error
    plain = parse_json(text, str(path), DatasetError, remedy)
    head = checked(_Head, plain, str(path), DatasetError, remedy)
    shapes = [arrays[name].shape for name in _ARRAYS]
    (dim, *_), (cls, *_) = shapes[0] or (0,), shapes[-1] or (0,)
    if head.schema_version != PROBE_SCHEMA or shapes != [
        (dim,), (dim,), (dim, cls), (cls,), (cls,)
    ]:  # fmt: skip
        raise DatasetError(
            f"{path}: schema version {head.schema_version} and shapes "
            f"{shortened(str(shapes))} are not those of a linear probe of version {PROBE_SCHEMA}; "
            f"{remedy}"
        )
    numbers = all(
        arrays[name].dtype.kind == "f" and np.isfinite(arrays[name]).all() for name in _ARRAYS[:4]
    )
    classes, names = arrays["classes"], head.about.class_names
    num_known = NUM_CLASSES if names is None else len(names)
    known = classes.dtype.kind in "iu" and ((classes >= 0) & (classes < num_known)).all()
    if not numbers or not known or (names is not None and len(names) != len(classes)):
        raise DatasetError(f"{path}: its numbers or classes are none; {remedy}")
    arrays["classes"] = classes.astype(np.int64)
    return LinearProbe(**arrays, chosen=head.strength), head.about
