"""Feature matrices: what is asked of them, and unit rows (section 2: every feature is a unit vector)."""

import numpy as np
from jaxtyping import Float, Num

from tenfold import UserError


def check_features(features: Num[np.ndarray, "..."], name: str) -> Float[np.ndarray, "n d"]:
    """Check a feature matrix that came from outside and give it as float32.

    Args:
        features: one row per instance.
        name: what to call it in an error: a file, or the argument.

    Raises:
        UserError: not a matrix, empty, not finite, or with rows of zeros.
    """
    if features.ndim != 2 or np.iscomplexobj(features):
        raise UserError(f"{name}: expected a real matrix with one row per instance, got shape {features.shape}")
    if 0 in features.shape:
        raise UserError(f"{name}: holds no instances (shape {features.shape})")
    features = np.ascontiguousarray(features, dtype=np.float32)
    bad = np.asarray(~np.isfinite(features).all(axis=1))
    if bad.any():
        raise UserError(f"{name}: {_rows(bad)} NaN or infinite; drop or recompute them")
    bad = np.asarray(~features.any(axis=1))
    if bad.any():
        raise UserError(f"{name}: {_rows(bad)} all zero and have no direction; drop or recompute them")
    return features


def _rows(bad: np.ndarray) -> str:
    rows = np.flatnonzero(bad)
    shown = ", ".join(map(str, rows[:5])) + (", ..." if rows.size > 5 else "")
    return f"{rows.size} row{'s' if rows.size > 1 else ''} ({shown}) {'are' if rows.size > 1 else 'is'}"


def check_pair(a: Float[np.ndarray, "n d"], b: Float[np.ndarray, "m e"], names: tuple[str, str]) -> None:
    """Raise a `UserError` unless both matrices have the same number of columns."""
    if a.shape[1] != b.shape[1]:
        raise UserError(
            f"{names[0]} has {a.shape[1]} columns and {names[1]} has {b.shape[1]}: both must come from one encoder"
        )


def unit_rows(features: Float[np.ndarray, "n d"]) -> Float[np.ndarray, "n d"]:
    """Divide each row by its Euclidean norm; rows of zeros stay zero."""
    # The largest entry first: squares of very large or very small entries leave the range of float32.
    scaled = features / np.maximum(np.abs(features).max(axis=1, keepdims=True), np.finfo(np.float32).tiny)
    return scaled / np.maximum(np.linalg.norm(scaled, axis=1, keepdims=True), np.finfo(np.float32).tiny)
