#pragma once

#include <string_view>

namespace degu {

// The page at "/": one HTML file without external parts (page.html).
std::string_view page_html();

}  // namespace degu
