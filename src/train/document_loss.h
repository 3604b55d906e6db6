// How well a model predicts held-out text, document by document, so that models can be compared on
// the same documents with intervals.
#pragma once

#include <vector>

#include "train/compare.h"

namespace degu {

// Sums over the part of one document in one window.
struct DocumentLoss {
  int64_t tokens = 0;
  double loss = 0;  // nats
};

struct DocumentLosses {
  std::vector<DocumentLoss> documents;
  int64_t bytes = 0;  // of text, under all counted tokens

  int64_t tokens() const;
  double loss() const;  // nats per token
};

// One rank; `plan.micro_sequences` sequences at once. The documents are the same for every model
// with this data's sequence length.
DocumentLosses document_losses(Context& context, const ComparedModel& model, const StepPlan& plan,
                               const ValidationSet& data);

// 95 % percentile intervals over resampled documents.
Estimate perplexity(const DocumentLosses& losses);
Estimate bits_per_byte(const DocumentLosses& losses);
// Perplexity / the reference's - 1, documents resampled in pairs. DataError when the documents
// differ.
Estimate perplexity_change(const DocumentLosses& losses, const DocumentLosses& reference);

}  // namespace degu
