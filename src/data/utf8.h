#pragma once

#include <cstddef>
#include <string_view>

namespace degu {

// Position of the first byte that is not part of well-formed UTF-8 (Unicode 15, table 3-7: no
// overlong forms, no surrogates, nothing above U+10FFFF) or is NUL, which text does not contain;
// npos if all is well.
size_t find_bad_utf8(std::string_view text);

// The largest end <= `limit` at which `text` can be cut without splitting a character.
size_t utf8_cut(std::string_view text, size_t limit);

}  // namespace degu
