"""Files and fine-tuning jobs through the client, to a model that answers."""

import json
import time

import openai

from checks import check, raises
from server import MODEL


def conversations(count: int) -> bytes:
    """Rows that always end in the same answer."""
    rows = [{"messages": [{"role": "user", "content": f"say {i}"}, {"role": "assistant", "content": "yes"}]} for i in range(count)]
    return "\n".join(map(json.dumps, rows)).encode()


def finished(client, job):
    until = time.monotonic() + 120
    while job.status not in ("succeeded", "failed", "cancelled"):
        assert time.monotonic() < until, f"the job is still {job.status}"
        time.sleep(0.05)
        job = client.fine_tuning.jobs.retrieve(job.id)
    return job


@check
def an_instruction_job_ends_in_a_model_that_answers(client):
    rows = conversations(24)
    file = client.files.create(file=("talk.jsonl", rows), purpose="fine-tune")
    assert file.object == "file" and file.bytes == len(rows) and file.filename == "talk.jsonl" and file.purpose == "fine-tune"
    assert client.files.content(file.id).read() == rows and file.id in [f.id for f in client.files.list()]
    job = client.fine_tuning.jobs.create(
        model=MODEL, training_file=file.id, suffix="yes", seed=7, metadata={"of": "conformance"},
        method={"type": "supervised", "supervised": {"hyperparameters": {"n_epochs": 2, "batch_size": 8, "learning_rate_multiplier": "auto"}}})
    assert job.object == "fine_tuning.job" and job.status in ("validating_files", "queued", "running") and job.metadata == {"of": "conformance"}
    job = finished(client, job)
    assert job.status == "succeeded" and job.trained_tokens > 0 and job.finished_at >= job.created_at, job.error
    assert job.fine_tuned_model.startswith("ft:chat-tiny:yes:") and client.models.retrieve(job.fine_tuned_model).id == job.fine_tuned_model
    events = list(client.fine_tuning.jobs.list_events(job.id, limit=3))
    assert all(e.object == "fine_tuning.job.event" and e.message for e in events) and len(events) > 3
    checkpoints = list(client.fine_tuning.jobs.checkpoints.list(job.id))
    assert checkpoints and checkpoints[0].metrics.train_loss is not None
    for model in (job.fine_tuned_model, checkpoints[0].fine_tuned_model_checkpoint):
        answer = client.chat.completions.create(model=model, messages=[{"role": "user", "content": "say 3"}], max_tokens=8, temperature=0)
        assert isinstance(answer.choices[0].message.content, str)
    assert client.files.content(job.result_files[0]).read().startswith(b"step")
    client.models.delete(job.fine_tuned_model)
    raises(openai.NotFoundError, lambda: client.models.retrieve(job.fine_tuned_model))
    client.files.delete(file.id)
    raises(openai.NotFoundError, lambda: client.files.retrieve(file.id), file.id)


@check
def a_job_is_paused_resumed_and_cancelled(client):
    file = client.files.create(file=("talk.jsonl", conversations(24)), purpose="fine-tune")
    job = client.fine_tuning.jobs.create(model=MODEL, training_file=file.id, extra_body={"training": {"max_steps": 100_000}})
    client.fine_tuning.jobs.pause(job.id)
    until = time.monotonic() + 60
    while (state := client.fine_tuning.jobs.retrieve(job.id).status) != "paused":
        assert time.monotonic() < until, f"the job is still {state}"
        time.sleep(0.05)
    client.fine_tuning.jobs.resume(job.id)
    client.fine_tuning.jobs.cancel(job.id)
    assert finished(client, client.fine_tuning.jobs.retrieve(job.id)).status == "cancelled"
    assert job.id in [j.id for j in client.fine_tuning.jobs.list(limit=1)]


@check
def rows_that_are_wrong_are_named_by_line_and_field(client):
    rows = conversations(1) + b'\n{"messages": [{"role": "bot", "content": "x"}]}\n{"messages": []}\n'
    error = raises(openai.BadRequestError, lambda: client.files.create(file=("bad.jsonl", rows), purpose="fine-tune"),
                   "line 2", "messages[0].role", "bot", "line 3")
    assert error.param == "file"
    raises(openai.NotFoundError, lambda: client.fine_tuning.jobs.create(model=MODEL, training_file="file-nothing"), "file-nothing")
    raises(openai.NotFoundError, lambda: client.fine_tuning.jobs.retrieve("ftjob-nothing"), "ftjob-nothing")
