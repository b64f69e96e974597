"""Trains on one long sequence by truncated back-propagation through time (Williams and Peng 1990).

The sequence is cut into windows. The state is carried from window to window, so the network sees all of the past. Between two
windows the state is detached, so gradients, and the memory for them, reach back only to the start of the window. The task is to
repeat the input of two steps ago.
Prints the mean loss of the first and of the last pass over the sequence, and how many steps the last output's gradient reaches.
Needs nothing: on the CPU the call goes to torch's own operator, on a GPU to the kernels.
"""

import torch
import torch.nn.functional as F

import torch_unroll as tu

STEPS, WINDOW, DELAY = 200, 20, 2


def main() -> None:
    torch.manual_seed(0)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    x = torch.randint(0, 2, (STEPS, 8, 1), device=device).float()  # (T, N, I)
    target = x.roll(DELAY, dims=0)
    rnn = tu.nn.RNN(1, 16).to(device)
    output = torch.nn.Linear(16, 1).to(device)
    optimizer = torch.optim.Adam([*rnn.parameters(), *output.parameters()], lr=0.02)

    for epoch in range(12):
        total, state = 0.0, None
        for start in range(0, STEPS, WINDOW):
            window = slice(start, start + WINDOW)
            h, state = rnn(x[window], None if state is None else state.detach())
            loss = F.binary_cross_entropy_with_logits(output(h), target[window])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            total += loss.item()
        if epoch in (0, 11):
            print(f"pass {epoch + 1:2}: mean loss {total / (STEPS // WINDOW):.3f}")

    x.requires_grad_()
    _, state = rnn(x[: STEPS - WINDOW])
    h, _ = rnn(x[STEPS - WINDOW :], state.detach())
    (gradient,) = torch.autograd.grad(h[-1].sum(), x)
    reached = int(gradient.abs().flatten(1).amax(1).gt(0).sum())
    print(f"the last output's gradient reaches {reached} of {STEPS} steps")


if __name__ == "__main__":
    main()
