"""A connection string as people see it never has its password (SPEC W11)."""

from __future__ import annotations

import pytest

from packhorse.worker.config import mask_url


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://user:s3cret@host/db",
        "postgresql://user@host/db?password=s3cret&sslmode=require",
        "postgresql://user@host/db?sslmode=require&sslpassword=s3cret",
        "host=h user=u password=s3cret dbname=d",
        "host=h user=u password = s3cret dbname=d",
        "host=h PASSWORD= s3cret",
        "host=h password='a s3cret' dbname=d",
        r"host=h password='it\'s s3cret' dbname=d",
        "host=h password=a&s3cret dbname=d",
        r"host=h password=a\ s3cret dbname=d",
        "host=h password='open s3cret",
        "host=h password='a://s3cret b s3cret' dbname=d",
    ],
)
def test_no_form_of_a_password_is_shown(url):
    shown = mask_url(url)
    assert "s3cret" not in shown and "***" in shown
    assert "h" in shown and ("dbname=d" in shown) == ("dbname=d" in url), "the rest is"
