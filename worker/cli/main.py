"""packhorse: the command, with all that it can do; worker/cli/program.py runs it."""

from __future__ import annotations

from packhorse.worker.cli import (
    backfill,
    config,
    conversations,
    copies,
    dead_letter,
    deploy,
    doctor,
    enqueue,
    health,
    maintenance,
    message,
    migrate,
    partitions,
    queue,
    relay,
    schedule,
    scheduler,
    scope,
    service,
    stats,
    table_care,
    token,
    top,
    up,
    web,
    worker,
    workers,
)
from packhorse.worker.cli.group import group

app = group()
app.command("up")(up.up)
app.command("worker")(worker.worker)
app.command("relay")(relay.relay)
app.command("scheduler")(scheduler.scheduler)
app.add_typer(migrate.app, name="migrate")
app.add_typer(copies.app, name="copy")
app.command("enqueue")(enqueue.enqueue)
app.add_typer(queue.app, name="queue")
app.add_typer(message.app, name="message")
app.add_typer(dead_letter.app, name="dead-letter")
app.add_typer(schedule.app, name="schedule")
app.add_typer(service.app, name="service")
app.add_typer(scope.app, name="scope")
app.add_typer(maintenance.app, name="maintenance")
app.add_typer(partitions.app, name="partitions")
app.add_typer(backfill.app, name="backfill")
app.command("table-care")(table_care.table_care)
app.command("conversations")(conversations.conversations)
app.add_typer(conversations.app, name="conversation")
app.add_typer(workers.app, name="workers")
app.command("stats")(stats.stats)
app.command("health")(health.health)
app.command("doctor")(doctor.doctor)
app.command("top")(top.top)
app.command("web")(web.web)
app.add_typer(token.app, name="token")
app.add_typer(config.app, name="config")
app.add_typer(deploy.app, name="deploy")
