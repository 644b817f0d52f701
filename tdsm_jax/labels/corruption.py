"""Models of class-conditional label noise, and the corruption of clean labels by them.

S[i, j] = p(y_tilde=j | y=i) throughout: rows are clean classes, columns noisy ones.
"""

import numpy as np

from tdsm_jax.errors import UserError, did_you_mean
from tdsm_jax.labels.transition import check_stochastic

# The 20 super-classes of CIFAR-100. Fine labels number the 100 names in alphabetical order.
CIFAR100_SUPERCLASSES = {
    "aquatic_mammals": ("beaver", "dolphin", "otter", "seal", "whale"),
    "fish": ("aquarium_fish", "flatfish", "ray", "shark", "trout"),
    "flowers": ("orchid", "poppy", "rose", "sunflower", "tulip"),
    "food_containers": ("bottle", "bowl", "can", "cup", "plate"),
    "fruit_and_vegetables": ("apple", "mushroom", "orange", "pear", "sweet_pepper"),
    "household_electrical_devices": ("clock", "keyboard", "lamp", "telephone", "television"),
    "household_furniture": ("bed", "chair", "couch", "table", "wardrobe"),
    "insects": ("bee", "beetle", "butterfly", "caterpillar", "cockroach"),
    "large_carnivores": ("bear", "leopard", "lion", "tiger", "wolf"),
    "large_man-made_outdoor_things": ("bridge", "castle", "house", "road", "skyscraper"),
    "large_natural_outdoor_scenes": ("cloud", "forest", "mountain", "plain", "sea"),
    "large_omnivores_and_herbivores": ("camel", "cattle", "chimpanzee", "elephant", "kangaroo"),
    "medium_mammals": ("fox", "porcupine", "possum", "raccoon", "skunk"),
    "non-insect_invertebrates": ("crab", "lobster", "snail", "spider", "worm"),
    "people": ("baby", "boy", "girl", "man", "woman"),
    "reptiles": ("crocodile", "dinosaur", "lizard", "snake", "turtle"),
    "small_mammals": ("hamster", "mouse", "rabbit", "shrew", "squirrel"),
    "trees": ("maple_tree", "oak_tree", "palm_tree", "pine_tree", "willow_tree"),
    "vehicles_1": ("bicycle", "bus", "motorcycle", "pickup_truck", "train"),
    "vehicles_2": ("lawn_mower", "rocket", "streetcar", "tank", "tractor"),
}


def _cifar100_flips() -> dict[int, int]:
    """Each class becomes the next one of its super-class, the last becoming the first."""
    names = sorted(name for members in CIFAR100_SUPERCLASSES.values() for name in members)
    label = {name: index for index, name in enumerate(names)}
    return {
        label[name]: label[successor]
        for members in CIFAR100_SUPERCLASSES.values()
        for name, successor in zip(members, members[1:] + members[:1], strict=True)
    }


_DIGIT_FLIPS = {2: 7, 3: 8, 5: 6, 6: 5}
# table -> (K, the classes that flip and what each is mistaken for); the other classes stay clean
ASYMMETRIC_TABLES = {
    "digits": (10, _DIGIT_FLIPS),
    "mnist": (10, _DIGIT_FLIPS),
    "cifar10": (10, {9: 1, 2: 0, 4: 7, 3: 5, 5: 3}),  # truck bird deer cat dog
    "cifar100": (100, _cifar100_flips()),
}


def symmetric(num_classes: int, rate: float) -> np.ndarray:
    """Returns S [K, K]: a label is wrong with probability `rate`, each wrong class being equally likely."""
    _check_model(num_classes, rate)
    S = np.full((num_classes, num_classes), rate / (num_classes - 1))
    np.fill_diagonal(S, 1 - rate)
    return S


def pair(num_classes: int, rate: float) -> np.ndarray:
    """Returns S [K, K]: class c becomes (c + 1) mod K with probability `rate`."""
    return _flip(num_classes, {c: (c + 1) % num_classes for c in range(num_classes)}, rate)


def asymmetric(table: str, rate: float) -> np.ndarray:
    """Returns S [K, K]: the look-alike classes of a data set flip with probability `rate`.

    `table` names an entry of `ASYMMETRIC_TABLES`; an unknown one is a `UserError`.
    Source: Patrini et al., CVPR 2017; the digits without that paper's 7 -> 1, as in TDSM.
    """
    if table not in ASYMMETRIC_TABLES:
        hint = did_you_mean(table, ASYMMETRIC_TABLES)
        raise UserError(f"unknown table of asymmetric label noise {table!r}{hint}")
    num_classes, flips = ASYMMETRIC_TABLES[table]
    return _flip(num_classes, flips, rate)


def _flip(num_classes: int, flips: dict[int, int], rate: float) -> np.ndarray:
    _check_model(num_classes, rate)
    S = np.eye(num_classes)
    for source, target in flips.items():
        S[source, source] = 1 - rate
        S[source, target] = rate
    return S


def _check_model(num_classes: int, rate: float) -> None:
    if num_classes < 2:
        raise UserError(f"label noise needs at least 2 classes, got {num_classes}")
    if not 0 <= rate <= 1:
        raise UserError(f"the label noise rate must lie in [0, 1], got {rate}")


def transition_matrix(kind: str, num_classes: int, rate: float, table: str = "") -> np.ndarray:
    """Returns float64 S [K, K] of the label noise `kind`: "sym", "pair" or "asym".

    `table` is read by "asym" only. Unknown kinds or tables, a table of another K, and rates outside
    [0, 1] raise `UserError`.
    """
    if kind == "sym":
        return symmetric(num_classes, rate)
    if kind == "pair":
        return pair(num_classes, rate)
    if kind == "asym":
        S = asymmetric(table, rate)
        if len(S) != num_classes:
            raise UserError(f"table {table!r} is for {len(S)} classes, but the data has {num_classes}")
        return S
    raise UserError(f"unknown kind of label noise {kind!r}{did_you_mean(kind, ('sym', 'asym', 'pair'))}")


def corrupt(labels: np.ndarray, S: np.ndarray, seed: int) -> np.ndarray:
    """Returns noisy labels y_tilde int32 [N], y_tilde[n] ~ S[labels[n]]: a pure function of its arguments.

    Example n owns the n-th uniform of PCG64(seed), turned into a class by the inverse CDF of its row: the
    result depends on the order of `labels` [N], on nothing else, and is the same on every platform.
    Raises `UserError` for labels outside [0, K), no labels, a negative seed or an S [K, K] that is not
    row-stochastic.
    """
    check_stochastic(S)
    S = np.asarray(S, np.float64)
    num_classes = len(S)
    labels = _check_labels("labels", labels)
    _check_range("labels", labels, num_classes)
    if seed < 0:
        raise UserError(f"the corruption seed must be a non-negative integer, got {seed}")
    uniform = np.random.Generator(np.random.PCG64(seed)).random(len(labels))
    y_tilde = np.empty(len(labels), np.int32)
    for y in range(num_classes):
        cdf = np.cumsum(S[y])
        # The sum may round to just below 1; a uniform in that gap must not reach an impossible class.
        cdf[np.flatnonzero(S[y])[-1] :] = 1
        chosen = labels == y
        y_tilde[chosen] = np.searchsorted(cdf, uniform[chosen], side="right")
    return y_tilde


def realised_matrix(labels: np.ndarray, y_tilde: np.ndarray, num_classes: int) -> np.ndarray:
    """Returns float64 [K, K]: the fraction of each clean class that carries each noisy label.

    A class without examples has no such fractions: its row is NaN, which no later check mistakes for
    a distribution. `labels` and `y_tilde` are [N]; other shapes or labels outside [0, K) raise `UserError`.
    """
    labels, y_tilde = _check_pair(labels, y_tilde)
    _check_range("labels", labels, num_classes)
    _check_range("y_tilde", y_tilde, num_classes)
    counts = np.zeros((num_classes, num_classes))
    np.add.at(counts, (labels, y_tilde), 1)
    totals = counts.sum(axis=1, keepdims=True)
    return np.divide(counts, totals, out=np.full_like(counts, np.nan), where=totals > 0)


def realised_rate(labels: np.ndarray, y_tilde: np.ndarray) -> float:
    """Returns the fraction of the labels [N] that differ from y_tilde [N]; other shapes raise `UserError`."""
    labels, y_tilde = _check_pair(labels, y_tilde)
    return float(np.mean(labels != y_tilde))


def _check_pair(labels: np.ndarray, y_tilde: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    labels, y_tilde = _check_labels("labels", labels), _check_labels("y_tilde", y_tilde)
    if len(labels) != len(y_tilde):
        raise UserError(f"{len(labels)} clean labels do not match {len(y_tilde)} noisy ones")
    return labels, y_tilde


def _check_labels(name: str, labels: np.ndarray) -> np.ndarray:
    labels = np.asarray(labels)
    if labels.ndim != 1 or len(labels) == 0:
        raise UserError(f"{name} must be a non-empty list of class indices, got shape {labels.shape}")
    if labels.dtype.kind not in "iu":
        raise UserError(f"{name} must be integers, got {labels.dtype}")
    return labels


def _check_range(name: str, labels: np.ndarray, num_classes: int) -> None:
    if labels.min() < 0 or labels.max() >= num_classes:
        raise UserError(f"{name} span {labels.min()}..{labels.max()}, but classes are 0..{num_classes - 1}")
