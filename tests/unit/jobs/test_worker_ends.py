"""What a worker says when it ends, and with which exit code."""

import errno

from irlops_jobs.worker import translate


def test_a_lost_peer_is_told_without_the_source_line_and_the_advice_of_the_library():
    words = (
        "[/__w/pytorch/gloo/transport/tcp/pair.cc:553] Connection closed by peer [127.0.0.1]:4014. This is typically "
        "caused by a remote worker crashing. Check the logs of the remote worker before reporting an error."
    )
    assert translate(RuntimeError(words)) == (
        202,
        "Another worker is gone: Connection closed by peer [127.0.0.1]:4014",
    )


def test_a_full_disk_is_named_and_may_be_tried_again():
    code, message = translate(OSError(errno.ENOSPC, "No space left on device", "/state/run/metrics.jsonl"))
    assert (code, message) == (
        201,
        "No space left for /state/run/metrics.jsonl. Free space and start the same job again.",
    )


def test_a_bug_has_a_traceback_instead_of_a_message():
    assert translate(RuntimeError("shapes differ")) == (1, None)
