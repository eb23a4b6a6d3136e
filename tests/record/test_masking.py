"""No secret that stands in an address is recorded."""

import pytest

from planaria.record import mask_secrets


@pytest.mark.parametrize(
    ("text", "masked"),
    [
        ("postgresql://ann:pa55@db:5432/mlflow", "postgresql://ann:***@db:5432/mlflow"),
        ("http://:tok@host/x", "http://:***@host/x"),
        ("s3://bucket/k?region=eu&secret_key=abc&x=1", "s3://bucket/k?region=eu&secret_key=***&x=1"),
        ("https://h/p?access_token=abc", "https://h/p?access_token=***"),
        ("a: 'mysql+pymysql://u:p:w@h/d' # b", "a: 'mysql+pymysql://u:***@h/d' # b"),
        ("http://host:5000/path", "http://host:5000/path"),
        ("sqlite:////data/mlflow.db", "sqlite:////data/mlflow.db"),
        ("a text: with @ signs and 12:30", "a text: with @ signs and 12:30"),
    ],
)
def test_only_the_secret_part_is_masked(text: str, masked: str) -> None:
    assert mask_secrets(text) == masked
