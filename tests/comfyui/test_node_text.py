"""Which texts of nodes a new job clears, and whose."""

from e4t_pack.nodes.host.node_text import CLIENTS, ShownTexts


def test_a_new_job_takes_the_texts_of_its_client_s_jobs_that_are_over():
    shown = ShownTexts()
    for client, node, job in (("a", "1", "old"), ("a", "2", "running"), ("a", "3", "old"), ("b", "1", "old")):
        shown.add(client, node, job)
    assert shown.take("a", running={"running"}, kept={"3"}) == ["1"]
    assert shown.take("a", running=set(), kept=set()) == ["2", "3"]
    assert shown.take("a", running=set(), kept=set()) == []
    assert shown.take("b", running=set(), kept=set()) == ["1"]
    assert shown.take("nobody", running=set(), kept=set()) == []


def test_clients_that_left_long_ago_are_forgotten():
    shown = ShownTexts()
    for number in range(CLIENTS + 1):
        shown.add(str(number), "1", "old")
    assert shown.take("0", set(), set()) == []
    assert shown.take("1", set(), set()) == ["1"]
