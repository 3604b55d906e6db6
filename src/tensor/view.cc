#include "tensor/view.h"

namespace degu {

std::string Shape::str() const {
  std::string text = "[";
  for (int i = 0; i < rank_; ++i) {
    if (i > 0) text += ", ";
    text += std::to_string((*this)[i]);
  }
  return text + "]";
}

AnyView AnyView::rows(int64_t begin, int64_t count) const {
  DEGU_DCHECK(shape.rank() >= 1 && begin >= 0 && begin + count <= shape[0]);
  const int64_t row = shape[0] == 0 ? 0 : shape.elements() / shape[0];
  AnyView part = *this;
  part.data = static_cast<std::byte*>(data) + static_cast<size_t>(begin * row) * size_of(dtype);
  switch (shape.rank()) {
    case 1:
      part.shape = {count};
      break;
    case 2:
      part.shape = {count, shape[1]};
      break;
    case 3:
      part.shape = {count, shape[1], shape[2]};
      break;
    default:
      part.shape = {count, shape[1], shape[2], shape[3]};
  }
  return part;
}

}  // namespace degu
