"""A saved model answers in the stream's own labels, from rows as a user has them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from planaria.blueprint import Blueprint
from planaria.errors import InputError
from planaria.model import ElasticTransformer, build, save_model
from planaria.record import serve

LABELS = ["boot", "coat", "bag"]


def with_weights(blueprint: Blueprint) -> ElasticTransformer:
    """A model whose answers depend on its input, as those of a fresh one do not."""
    model, generator = build(blueprint), torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(generator=generator)
    return model


def picture_model(folder: Path, shape: tuple[int, int, int] = (1, 8, 6)) -> Path:
    blueprint = Blueprint("classification", 16, 4, 16, (1, 2), 3, image_shape=shape, patch=4)
    save_model(with_weights(blueprint), folder, {"fields": {"image_shape": shape}, "labels": LABELS, "stream": {}})
    return folder


def table_model(folder: Path, *, task: str = "classification") -> Path:
    regression = task == "regression"
    shape: dict[str, Any] = {"numeric": 2, "categorical": 2, "categories": 5}
    blueprint = Blueprint(
        "regression" if regression else "classification", 16, 4, 16, (2,), 1 if regression else 3, **shape
    )
    model = with_weights(blueprint)
    torch.manual_seed(0)
    model.observe({"numeric": torch.randn(256, 2)})
    fields = {"image_shape": None, "numeric": ["rain", "wind"], "categorical": ["city", "day"], "categories": 5}
    categories = {"city": ["oslo", "rome"], "day": [1, 2, 3]}
    encoding = {"fields": fields, "labels": [] if regression else LABELS, "stream": {"categories": categories}}
    save_model(model, folder, encoding)
    return folder


def rows(**columns: Any) -> pd.DataFrame:
    given = {"rain": [0.1, 2.0, -1.0], "wind": [1.0, 0.0, 3.0], "city": ["oslo", "rome", "oslo"], "day": [1, 2, 3]}
    return pd.DataFrame({**given, **columns})


def test_pictures_get_labels_whatever_their_layout(tmp_path: Path) -> None:
    served = serve.load(picture_model(tmp_path, (3, 8, 6)))
    image_BCYX = np.random.default_rng(0).integers(0, 256, (40, 3, 8, 6)).astype(np.uint8)
    answers = served.predict(image_BCYX)
    assert set(answers) <= set(LABELS) and len(set(answers)) > 1
    image_BYXC = np.moveaxis(image_BCYX, 1, 3)
    for same in (image_BYXC, image_BYXC.reshape(40, -1), image_BYXC.astype(np.int64), image_BYXC / 255):
        assert served.predict(same).tolist() == answers.tolist()
    frame = pd.DataFrame({"pixels": [picture.tolist() for picture in image_BYXC]})
    assert served.predict(frame).tolist() == answers.tolist()


def test_grey_pictures_need_no_channel(tmp_path: Path) -> None:
    served = serve.load(picture_model(tmp_path))
    image_BYX = np.random.default_rng(0).integers(0, 256, (5, 8, 6)).astype(np.uint8)
    assert served.predict(image_BYX).tolist() == served.predict(image_BYX[:, None]).tolist()


def test_pictures_of_another_size_are_refused(tmp_path: Path) -> None:
    served = serve.load(picture_model(tmp_path))
    with pytest.raises(InputError, match=r"pictures have shape \[9, 6\] but the model reads \[8, 6, 1\]"):
        served.predict(np.zeros((2, 9, 6), np.uint8))
    with pytest.raises(InputError, match="must be 0 to 255"):
        served.predict(np.full((2, 8, 6), 300))


def test_a_table_gets_the_model_s_own_answers(tmp_path: Path) -> None:
    served = serve.load(table_model(tmp_path))
    frame = rows()
    features = {
        "numeric": torch.tensor(frame[["rain", "wind"]].to_numpy(np.float32)),
        "categorical": torch.tensor([[1, 1], [2, 2], [1, 3]]),
    }
    expected = [LABELS[place] for place in served._model(features).argmax(1).tolist()]
    assert served.predict(frame.assign(extra="unused")).tolist() == expected


def test_missing_infinite_and_unseen_values_are_no_error(tmp_path: Path) -> None:
    served = serve.load(table_model(tmp_path, task="regression"))
    odd = rows(rain=[None, np.inf, 1.0], city=["bergen", None, "oslo"], day=[9, 2, 3])
    same = rows(rain=[np.nan, np.nan, 1.0], city=["paris", "london", "oslo"], day=[7, 2, 3])
    answers = served.predict(odd)
    assert answers.dtype == np.float64 and np.isfinite(answers).all()
    assert answers.tolist() == served.predict(same).tolist()
    assert answers.tolist() != served.predict(rows()).tolist()


def test_columns_may_be_of_other_number_types(tmp_path: Path) -> None:
    served = serve.load(table_model(tmp_path, task="regression"))
    nullable = rows().astype({"rain": "Float64", "day": "Int64", "city": "category"})
    assert served.predict(nullable).tolist() == served.predict(rows()).tolist()


def test_a_missing_column_is_named(tmp_path: Path) -> None:
    served = serve.load(table_model(tmp_path))
    with pytest.raises(InputError, match="column 'wind' is missing; the model reads rain, wind, city, day"):
        served.predict(rows().drop(columns="wind"))
    with pytest.raises(InputError, match="a numeric column holds other values"):
        served.predict(rows(rain=["wet", "dry", "wet"]))


def test_many_rows_are_answered_as_they_are_alone(tmp_path: Path) -> None:
    served = serve.load(table_model(tmp_path, task="regression"))
    many = pd.concat([rows()] * 500, ignore_index=True)
    np.testing.assert_allclose(served.predict(many)[:3], served.predict(rows()), rtol=1e-5)
    assert len(served.predict(many)) == 1_500
    assert served.predict(rows().iloc[:0]).shape == (0,)


def test_a_folder_without_a_model_is_an_input_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no usable model"):
        serve.load(tmp_path)


def test_serving_needs_neither_ray_nor_the_training_stack(tmp_path: Path) -> None:
    picture_model(tmp_path)
    code = (
        "import sys, numpy; from planaria.record import serve; "
        f"print(serve.load(__import__('pathlib').Path({str(tmp_path)!r})).predict(numpy.zeros((2, 8, 6), 'uint8'))); "
        "stack = ('ray', 'mlflow', 'learn2learn', 'river', 'planaria.train', 'planaria.control', 'planaria.stream'); "
        "sys.exit(' '.join(name for name in stack if name in sys.modules) or 0)"
    )
    source = Path(serve.__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(source)!r}); {code}"],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0 and done.stderr == "", done.stderr
