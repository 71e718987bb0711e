import pytest
import torch
from torch import Tensor, nn

from lightning_ncmtl.errors import InputError
from lightning_ncmtl.modules._per_task import apply_per_task, copy_except, find_rows, select_documents

DOCUMENTS = [[[3, 4, 5], [6]], [[7, 8]], [[9, 3, 3, 3], [4, 5], [6, 7, 8]], [[1]]]


def batch(documents: list[list[list[int]]], padded: bool) -> dict[str, Tensor]:
    sentences = [torch.tensor(sentence) for document in documents for sentence in document]
    return {
        "tokens": nn.utils.rnn.pad_sequence(sentences, batch_first=True) if padded else torch.cat(sentences),
        "sentence_lengths": torch.tensor([len(sentence) for sentence in sentences]),
        "document_lengths": torch.tensor([len(document) for document in documents]),
    }


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("rows", [[0], [2], [0, 1, 3], [3, 2, 1, 0], [1, 1]])
def test_selected_documents_are_a_batch_of_their_own(rows: list[int], padded: bool) -> None:
    found = select_documents(batch(DOCUMENTS, padded), torch.tensor(rows))
    expected = batch([DOCUMENTS[row] for row in rows], padded)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_rows_of_tensors() -> None:
    x, rows = torch.arange(12).reshape(4, 3), torch.tensor([3, 1])
    assert select_documents(x, rows).tolist() == [[9, 10, 11], [3, 4, 5]]
    assert select_documents({"x": x, "y": x[:, 0]}, rows)["y"].tolist() == [9, 3]


def test_each_row_goes_through_the_network_of_its_task() -> None:
    networks = nn.ModuleList(nn.Linear(1, 1, bias=False) for _ in range(4))
    for number, network in enumerate(networks):
        nn.init.constant_(network.weight, 10.0**number)
    out = apply_per_task(networks, torch.tensor([[1.0], [2.0], [3.0], [4.0]]), torch.tensor([3, 0, 3, 1]))
    assert out.flatten().tolist() == [1000, 2, 3000, 40]
    out.sum().backward()
    assert [network.weight.grad for network in networks] == [2, 4, None, 4]
    x, tasks, rows = torch.tensor([[1.0], [2.0], [3.0]]), torch.tensor([3, 0, 3, 1]), torch.tensor([2, 2, 0, 1])
    assert apply_per_task(networks, x, tasks, rows).flatten().tolist() == [3000, 3, 1000, 20]
    with pytest.raises(InputError, match=r"found \[3\] rows for \[4\] task ids"):
        apply_per_task(networks, x, tasks, rows[:3])


def test_find_rows() -> None:
    rows = find_rows(torch.tensor([3, 0, 3]), 4)
    assert {task: mine.tolist() for task, mine in rows.items()} == {0: [1], 3: [0, 2]}
    with pytest.raises(InputError, match="task id 4 is out of range: there are tasks 0 to 3"):
        find_rows(torch.tensor([0, 4]), 4)


def test_copies_share_what_is_named() -> None:
    module = nn.Sequential(nn.Embedding(3, 2), nn.Linear(2, 2))
    copied = copy_except(module, [module[1].bias])
    assert copied[1].bias is module[1].bias
    assert copied[1].weight is not module[1].weight
    assert copied[0].weight is not module[0].weight
    assert copy_except(module, [module[0]])[0] is module[0]
