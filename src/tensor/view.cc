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
  AnyView part = *this;
  if (data != nullptr) {  // it is while an arena measures
    part.data = static_cast<std::byte*>(data) +
                static_cast<size_t>(begin * shape.row_elements()) * size_of(dtype);
  }
  part.shape = shape.with_rows(count);
  return part;
}

}  // namespace degu
