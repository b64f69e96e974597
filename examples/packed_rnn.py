"""Classifies sequences of different lengths, given as a PackedSequence.

The task is to tell whether a sequence of ±1 has more +1 or more -1. A bidirectional RNN reads the packed sequences, so that no
step is computed for padding. A linear layer classifies each sequence by the last state of each direction.
Prints the loss before and after the training, and the accuracy on new sequences.
Needs nothing: on the CPU the call goes to torch's own operator, on a GPU to the kernels.
"""

import torch
import torch.nn.functional as F
from torch.nn.utils.rnn import PackedSequence, pack_sequence

import torch_unroll as tu


def draw(count: int, device: str) -> tuple[PackedSequence, torch.Tensor]:
    """Draws sequences of odd lengths between 3 and 15, and the class of each."""
    lengths = torch.randint(1, 8, (count,)) * 2 + 1
    sequences = [torch.randint(0, 2, (int(length), 1)).float() * 2 - 1 for length in lengths]
    classes = torch.stack([(sequence.sum() > 0).long() for sequence in sequences])
    return pack_sequence([sequence.to(device) for sequence in sequences], enforce_sorted=False), classes.to(device)


class Classifier(torch.nn.Module):
    def __init__(self, hidden_size: int = 16):
        super().__init__()
        self.rnn = tu.nn.RNN(1, hidden_size, bidirectional=True)
        self.logits = torch.nn.Linear(2 * hidden_size, 2)

    def forward(self, sequences: PackedSequence) -> torch.Tensor:
        _, h_n = self.rnn(sequences)  # (2, N, H): the last state of each direction, for each sequence
        return self.logits(torch.cat((h_n[0], h_n[1]), dim=1))


def main() -> None:
    torch.manual_seed(0)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = Classifier().to(device)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    for step in range(101):
        sequences, classes = draw(32, device)
        loss = F.cross_entropy(model(sequences), classes)
        if step % 50 == 0:
            print(f"step {step:3}: loss {loss.item():.3f}")
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    sequences, classes = draw(200, device)
    accuracy = (model(sequences).argmax(1) == classes).float().mean().item()
    print(f"accuracy on 200 new sequences: {accuracy:.1%}")


if __name__ == "__main__":
    main()
