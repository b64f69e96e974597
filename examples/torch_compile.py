"""Compiles a model with torch.compile: one graph, without a break at any of the ops.

The backend "aot_eager" traces forward and backward as the default backend does, and then runs the ops as they are: it needs no
compiler. Replace it with "inductor" to have the elementwise ops around the kernels fused.
Prints how many graphs were compiled, the operators of torch_unroll in them, and the difference from eager mode.
Needs nothing: without a GPU, engine `cuda` runs on the emulator if `make` has built it, else engine `torch` serves.
"""

import torch
from torch._dynamo.testing import CompileCounterWithBackend

import torch_unroll as tu


class Model(torch.nn.Module):
    def __init__(self, engine: str):
        super().__init__()
        self.convolution = tu.nn.Conv2d(1, 4, 3, engine=engine)
        self.pooling = tu.nn.MaxPool2d(2, engine=engine)
        self.rnn = tu.nn.RNN(16, 8, engine=engine)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        maps = self.pooling(torch.relu(self.convolution(images)))  # (N, 4, 4, 4)
        rows = maps.permute(2, 0, 1, 3).flatten(2)  # (T, N, I): the RNN reads the maps row by row
        return self.rnn(rows)[1]


def main() -> None:
    torch.manual_seed(0)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    engine = next(name for name, reason in tu.available_engines(device).reasons.items() if reason is None)
    model, images = Model(engine).to(device), torch.randn(2, 1, 10, 10, device=device)

    backend = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(model, backend=backend, fullgraph=True)
    result = compiled(images)
    result.sum().backward()

    operators = sorted({str(node.target) for node in backend.graphs[0].graph.nodes if "torch_unroll" in str(node.target)})
    print(f"graphs: {backend.frame_count}")
    print(f"operators: {', '.join(operators)}")
    print(f"differs from eager mode by at most {(result - model(images)).abs().max():.1e}")


if __name__ == "__main__":
    main()
