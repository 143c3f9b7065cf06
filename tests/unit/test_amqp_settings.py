"""The settings of RabbitMQ: what is a URL, what is told about one that is none."""

from __future__ import annotations

import pytest

from packhorse.worker.config import load_settings, shown
from packhorse.worker.config.amqp import amqp_urls
from packhorse.worker.errors import ConfigError


@pytest.mark.parametrize(
    ("text", "urls"),
    [
        ("amqp://me@one:5672/shop", ["amqp://me@one:5672/shop"]),
        ("amqp://me@one:5672/shop;two:5673", ["amqp://me@one:5672/shop", "amqp://me@two:5673/shop"]),
        ("amqps://one/, two , [::1]:5671", ["amqps://one/", "amqps://two/", "amqps://[::1]:5671/"]),
        ("amqp://one;amqps://you@two/x", ["amqp://one", "amqps://you@two/x"]),
    ],
)
def test_hosts_of_a_cluster_are_listed_after_the_first_url(text, urls):
    assert amqp_urls(text) == urls


@pytest.mark.parametrize(
    "text",
    ["redis://one", "one:5672", "amqp://a:" + "b@c@one/", "amqp://one;two three", " ;, ", "amqps:/one"],
)
def test_what_is_no_url_of_rabbitmq_is_refused_and_not_shown(text):
    with pytest.raises(ConfigError, match="amqp_url") as refused:
        load_settings({"PACKHORSE_AMQP_URL": text})
    assert text not in str(refused.value)


def test_the_password_of_each_host_is_masked():
    url = "amqp://me:{0}@one/;amqp://me:{0}@two/".format("hush")
    settings = load_settings({"PACKHORSE_AMQP_URL": url})
    assert shown(settings)["amqp_url"] == "amqp://me:***@one/;amqp://me:***@two/"
