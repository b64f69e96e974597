// Where an element of a dense tensor lies.
#pragma once
#include "max_pool2d/parameters.cuh"
#include "platform/types.h"

struct DensePosition {
  int64_t plane;
  int32_t row, column, inner;
};

// The position of the element at `index` in memory, in a dense tensor with these rows and columns.
__device__ inline DensePosition position_of(const MaxPool2dDense& dense, int64_t index, int32_t rows, int32_t columns) {
  const int64_t line = index / dense.inner, inner = index - line * dense.inner;
  const int64_t row = line / columns, column = line - row * columns;
  const int64_t plane = row / rows;
  return {plane, int32_t(row - plane * rows), int32_t(column), int32_t(inner)};
}

// Moves to the next element in memory.
__device__ inline void advance(DensePosition& position, const MaxPool2dDense& dense, int32_t rows, int32_t columns) {
  if (++position.inner < dense.inner) return;
  position.inner = 0;
  if (++position.column < columns) return;
  position.column = 0;
  if (++position.row < rows) return;
  position.row = 0;
  ++position.plane;
}
