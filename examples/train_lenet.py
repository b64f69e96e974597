"""Trains LeNet-5 on handwritten digits, with every convolution and pooling computed by torch_unroll.

Prints the mean loss over each tenth of the training, and then the accuracy on digits that were not trained on.
Needs scikit-learn, which includes the 1,797 digits. Without a GPU, engine `torch` computes: it is quicker than the emulator.
"""

import torch
import torch.nn.functional as F

import torch_unroll as tu
from torch_unroll.training.digits import load


def enlarged(images: torch.Tensor) -> torch.Tensor:
    """Turns digits (N, 8, 8) into the images (N, 1, 32, 32) that LeNet-5 was designed for."""
    return F.interpolate(images.unsqueeze(1), size=(32, 32), mode="bilinear", align_corners=False)


def main() -> None:
    torch.manual_seed(0)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    data = load()
    network = tu.models.lenet5().to(device)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.05, momentum=0.9)

    batches = torch.randperm(len(data.images)).split(16)
    with tu.use_engine("auto" if device == "cuda" else "torch"):
        losses = []
        for step, batch in enumerate(batches, 1):
            logits = network(enlarged(data.images[batch]).to(device))
            loss = F.cross_entropy(logits, data.digits[batch].to(device))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
            if step % (len(batches) // 10) == 0:
                print(f"step {step:4}: loss {sum(losses) / len(losses):.3f}")
                losses.clear()

        with torch.no_grad():
            predicted = network(enlarged(data.held_out_images).to(device)).argmax(1).cpu()
    accuracy = (predicted == data.held_out_digits).float().mean().item()
    print(f"accuracy on {len(predicted)} digits that were held out: {accuracy:.1%}")


if __name__ == "__main__":
    main()
