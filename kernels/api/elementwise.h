// Small passes over memory: conversion, sums.
#pragma once

#include "tensor/context.h"

namespace degu {

// to[i] = from[i], fp32 <-> bf16 (round to nearest even) or the same type; equal element counts.
void cast(Context& context, AnyView from, AnyView to);

// out[i] = a[i] + b[i]; fp32 or bf16 with one rounding, or int64; one type; out may be a or b.
void add(Context& context, AnyView a, AnyView b, AnyView out);

// x[i] *= factor.
void scale(Context& context, AnyView x, float factor);

void fill_zero(Context& context, AnyView x);

}  // namespace degu
