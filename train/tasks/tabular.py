"""Classification of tables with any scikit-learn classifier, its preparation of the columns saved with it."""

from __future__ import annotations

import inspect
import json
import warnings
from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from cluster.errors import InputError
from cluster.skops_file import dump_skops, load_skops
from cluster.spec import Spec, Train

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd

MODEL_FILE = "model.skops"


class TabularClassification:
    """Rows of numeric and categorical columns to one of a set of labels. After `fit` or `load`, `labels` and
    `features` ({column: "numeric" or "categorical"}) are set."""

    labels: list[str]
    features: dict[str, str]

    def fit(self, spec: Spec, data: Path, labels: list[str], folder: Path) -> dict[str, float]:
        """Learn from the prepared rows in `data`, save into `folder`, and return what the held-out rows say.

        Raises InputError where the estimator or its parameters are wrong.
        """
        import numpy as np
        import pandas as pd
        from sklearn.metrics import accuracy_score, log_loss

        self.labels = labels
        self.features = json.loads((data / "data.json").read_text())["features"]
        rows = pd.read_parquet(data / "train.parquet")
        self._pipeline, fitting = _pipeline(spec, self.features)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of convergence and the like: the held-out rows tell
                self._pipeline.fit(self._frame(rows), rows["label"], **fitting(rows["label"].to_numpy()))
        except (ValueError, TypeError) as error:
            raise InputError(f"train.parameters: {spec.model} refused to learn: {_first_line(error)}") from None
        folder.mkdir(parents=True, exist_ok=True)
        dump_skops(self._pipeline, folder / MODEL_FILE)
        about = {"task": spec.task, "labels": labels, "features": self.features, "estimator": spec.model}
        (folder / "config.json").write_text(json.dumps({"shoal": about}, indent=2))

        metrics = {}
        for split, prefix in (("train", "train"), ("validation", "validation")):
            part = rows if split == "train" else pd.read_parquet(data / f"{split}.parquet")
            if len(part):
                scores = self.predict(part)
                truth = part["label"].to_numpy()
                metrics[f"{prefix}/accuracy"] = float(accuracy_score(truth, scores.argmax(1)))
                metrics[f"{prefix}/loss"] = float(log_loss(truth, scores, labels=np.arange(len(labels))))
        return metrics

    def load(self, folder: Path) -> None:
        """Open a finished model. Raises InputError where it is none, or holds types that are not scikit-learn's."""
        try:
            about = json.loads((folder / "config.json").read_text())["shoal"]
            self.labels, self.features = about["labels"], about["features"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise InputError(f"{folder / 'config.json'}: not a tabular model's: {_first_line(error)}") from None
        self._pipeline = load_skops(folder / MODEL_FILE)

    def predict(self, rows: pd.DataFrame | Mapping[str, Sequence[Any]]) -> np.ndarray:
        """Scores of each label, [rows, labels], that add up to 1. An estimator without probabilities gives 0 and 1.

        Raises InputError where a column is missing, or holds text where numbers were learned.
        """
        import numpy as np
        import pandas as pd

        frame = self._frame(pd.DataFrame(rows))
        classes = np.asarray(self._pipeline.classes_, dtype=int)
        scores = np.zeros((len(frame), len(self.labels)))
        if hasattr(self._pipeline, "predict_proba"):
            scores[:, classes] = self._pipeline.predict_proba(frame)
        else:
            scores[np.arange(len(frame)), self._pipeline.predict(frame)] = 1
        return scores

    def _frame(self, rows: pd.DataFrame) -> pd.DataFrame:
        """The feature columns in their order: float64 for numbers, text or missing for categories."""
        import pandas as pd

        if missing := [name for name in self.features if name not in rows]:
            raise InputError(
                f"columns missing: {', '.join(missing)}; the model learned from {', '.join(self.features)}"
            )
        columns = {}
        for name, kind in self.features.items():
            column = rows[name]
            if kind == "categorical":
                texts = [None if missing else str(value) for value, missing in zip(column, column.isna(), strict=True)]
                columns[name] = pd.Series(texts, index=rows.index, dtype=object)
                continue
            try:
                columns[name] = pd.Series(pd.to_numeric(column), dtype="float64")
            except (ValueError, TypeError):
                raise InputError(f"column {name!r}: holds text, and the model learned from numbers there") from None
        return pd.DataFrame(columns, index=rows.index)


def _pipeline(spec: Spec, features: dict[str, str]) -> tuple[Any, Any]:
    """The pipeline, not fitted, and a function of the labels that gives the further arguments of its fit."""
    from sklearn.compose import ColumnTransformer
    from sklearn.impute import SimpleImputer
    from sklearn.pipeline import Pipeline
    from sklearn.preprocessing import OneHotEncoder, StandardScaler

    of = {kind: [name for name, its in features.items() if its == kind] for kind in ("numeric", "categorical")}
    numeric = Pipeline([("impute", SimpleImputer(keep_empty_features=True)), ("scale", StandardScaler())])
    categorical = Pipeline(
        [
            ("impute", SimpleImputer(missing_values=cast(Any, None), strategy="constant", fill_value="")),
            ("encode", OneHotEncoder(handle_unknown="ignore", sparse_output=False)),
        ]
    )
    prepare = ColumnTransformer([("numeric", numeric, of["numeric"]), ("categorical", categorical, of["categorical"])])
    model = estimator(spec.model, spec.train)
    balanced = spec.train.class_weights == "balanced"
    by_rows = balanced and "class_weight" not in model.get_params()
    if by_rows and "sample_weight" not in inspect.signature(model.fit).parameters:
        raise InputError(f"train.class_weights: {spec.model} cannot weigh classes; write none")

    def fitting(labels: np.ndarray) -> dict[str, Any]:
        from sklearn.utils.class_weight import compute_sample_weight

        return {"model__sample_weight": compute_sample_weight("balanced", labels)} if by_rows else {}

    return Pipeline([("prepare", prepare), ("model", model)]), fitting


def estimator(path: str, train: Train) -> Any:
    """A classifier by its dotted path. The seed and class weights of the file are handed on where it takes them.

    Raises InputError where scikit-learn has no such classifier, and where it does not take a parameter.
    """
    from sklearn.base import ClassifierMixin

    module, _, name = path.rpartition(".")
    try:
        found = getattr(import_module(module), name) if module.split(".")[0] == "sklearn" else None
    except (ImportError, AttributeError):
        found = None
    if not (isinstance(found, type) and issubclass(found, ClassifierMixin)):
        what = "is no classifier" if found is not None else "is not in scikit-learn"
        raise InputError(f"model: {path} {what}; write such as sklearn.ensemble.RandomForestClassifier")
    takes = {
        parameter.name: parameter.default
        for parameter in list(inspect.signature(found.__init__).parameters.values())[1:]
        if parameter.kind not in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL)
    }
    if unknown := [key for key in train.parameters if key not in takes]:
        raise InputError(f"train.parameters: {name} does not take {', '.join(unknown)}; it takes {', '.join(takes)}")
    given = dict(train.parameters)
    if "random_state" in takes:
        given.setdefault("random_state", train.seed)
    if "class_weight" in takes and train.class_weights == "balanced":
        given.setdefault("class_weight", "balanced")
    if needed := [key for key, default in takes.items() if default is inspect.Parameter.empty and key not in given]:
        raise InputError(f"train.parameters: {name} needs {', '.join(needed)}")
    return found(**given)


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
