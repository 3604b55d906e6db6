#include "compress/method.h"

namespace degu {

void quantize_rtn(Context& context, const ParameterSpec&, AnyView value,
                  const QuantizedWeight& out) {
  quantize_weight(context, value, out);
}

}  // namespace degu
