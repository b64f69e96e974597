"""The analysis of a wrong result without the GPU that computed it: the evidence that is kept, and the search for the fault."""
