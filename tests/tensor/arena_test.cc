#include "tensor/arena.h"

#include <catch2/catch.hpp>
#include <cstring>

namespace {

using degu::Arena;

TEST_CASE("pieces are aligned, apart and zero when first touched") {
  Arena arena(1 << 20);
  auto* first = static_cast<unsigned char*>(arena.take_bytes(1));
  auto* second = static_cast<unsigned char*>(arena.take_bytes(65));
  auto* third = static_cast<unsigned char*>(arena.take_bytes(0));
  CHECK(reinterpret_cast<uintptr_t>(first) % 64 == 0);
  CHECK(second - first == 64);
  CHECK(third - second == 128);
  CHECK(first[0] == 0);
  CHECK(arena.used() == 192);
  const auto view = arena.take<float>({4, 8});
  CHECK(view.dim(1) == 8);
  CHECK(reinterpret_cast<uintptr_t>(view.data()) % 64 == 0);
}

TEST_CASE("an exhausted arena says what it has and what was asked") {
  Arena arena(4096);
  const size_t capacity = arena.capacity();  // rounded up to whole huge pages
  arena.take_bytes(capacity - 64);
  CHECK_NOTHROW(arena.take_bytes(64));
  CHECK_THROWS_AS(arena.take_bytes(1), degu::ShapeError);
  CHECK_THROWS_WITH(arena.take_bytes(1), Catch::Contains(std::to_string(capacity)) &&
                                             Catch::Contains("cannot give 1 more"));
  CHECK(arena.used() == capacity);  // a refusal takes nothing
}

TEST_CASE("a request that no machine can meet is refused, not wrapped around") {
  Arena arena(1 << 20);
  arena.take_bytes(64);
  CHECK_THROWS_AS(arena.take_bytes(SIZE_MAX - 32), degu::ShapeError);
  CHECK_THROWS_AS(arena.take_bytes(SIZE_MAX - 127), degu::ShapeError);
}

TEST_CASE("scopes give back what they took; the peak stays") {
  Arena arena(1 << 20);
  arena.take_bytes(64);
  {
    const degu::ScratchScope outer(arena);
    arena.take_bytes(640);
    {
      const degu::ScratchScope inner(arena);
      arena.take_bytes(64);
    }
    CHECK(arena.used() == 704);
  }
  CHECK(arena.used() == 64);
  CHECK(arena.peak() == 768);
}

TEST_CASE("moving hands the memory over") {
  Arena arena(1 << 20);
  void* piece = arena.take_bytes(64);
  std::memset(piece, 5, 64);
  Arena moved(std::move(arena));
  CHECK(moved.used() == 64);
  CHECK(static_cast<char*>(piece)[63] == 5);
  Arena assigned(4096);
  assigned = std::move(moved);
  CHECK(assigned.used() == 64);
  CHECK(static_cast<char*>(piece)[0] == 5);
}

// Address space is not memory: a plan may reserve far more than it touches.
TEST_CASE("reserving more than the machine has costs nothing") {
  Arena arena(size_t{1} << 40);
  auto* piece = static_cast<char*>(arena.take_bytes(size_t{1} << 39));
  piece[0] = 1;
  piece[(size_t{1} << 39) - 1] = 1;
  CHECK(arena.peak() == size_t{1} << 39);
}

}  // namespace
