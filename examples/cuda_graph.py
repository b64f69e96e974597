"""Captures a training step into a CUDA graph and replays it on new data.

A graph saves the time that the host takes for each launch; in a small network, launches take most of the time. No kernel can be
compiled or loaded during the capture, so `tu.warmup` loads the kernels before it.
Prints the difference between the replayed and the eager gradients, which is 0: the kernels are deterministic.
Needs a GPU: without one it says so and exits with status 0.
"""

import torch

import torch_unroll as tu


def main() -> None:
    if not torch.cuda.is_available():
        print("skipped: a CUDA graph needs a GPU")
        return
    torch.manual_seed(0)
    model = torch.nn.Sequential(tu.nn.Conv2d(3, 8, 3, padding=1), torch.nn.ReLU(), tu.nn.MaxPool2d(2)).cuda()
    images = torch.randn(4, 3, 16, 16, device="cuda")
    tu.warmup("conv2d", dtype=torch.float32)
    tu.warmup("max_pool2d", dtype=torch.float32)

    def step() -> list[torch.Tensor]:
        return list(torch.autograd.grad(model(images).square().sum(), list(model.parameters())))

    stream = torch.cuda.Stream()  # torch asks for one eager run on a side stream before a capture
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        step()
    torch.cuda.current_stream().wait_stream(stream)

    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step()

    images.copy_(torch.randn_like(images))  # a graph reads its inputs from the memory that it was captured with
    graph.replay()
    difference = max((ours - eager).abs().max().item() for ours, eager in zip(captured, step(), strict=True))
    print(f"replayed on new images: gradients differ from the eager ones by {difference}")


if __name__ == "__main__":
    main()
