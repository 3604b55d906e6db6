// From token order to expert order and back. Indices are checked on the CPU; a kernel on an
// accelerator stops with an error at one that is out of range.
#pragma once

#include <span>

#include "tensor/context.h"

namespace degu {

// Where each routed row goes. Rows are sorted by (expert, token, slot), a stable counting sort.
//   offsets_E   [E + 1] int64   first row of each expert
//   row_TK      [T, K] int32    row of slot k of token t; -1 when dropped
//   token_R     [R] int32       token of each row
//   dropped     [1] int64
// `capacity` 0 keeps all. Otherwise each capacity group of tokens (group_offsets) keeps at most
// `capacity` rows per expert, first come first served by (token, slot). Entries of token_R past the
// last kept row are 0 on an accelerator, so that a caller who knows only the bound T * K may gather
// as many.
void route_plan(Context& context, AnyView expert_TK, int64_t experts, int64_t capacity,
                std::span<const int64_t> group_offsets, AnyView offsets_E, AnyView row_TK,
                AnyView token_R, AnyView dropped);

// Where the rows of each expert begin that come from each unit, of which unit u has the tokens
// [units[u], units[u + 1]): offsets_EU[e * U + u], then the end of all; int64. offsets_E and
// token_R are route_plan's.
void unit_offsets(Context& context, AnyView offsets_E, AnyView token_R,
                  std::span<const int64_t> units, AnyView offsets_EU);

// out[i] = number[index[i]]; int32, of one size.
void renumber(Context& context, AnyView index, std::span<const int32_t> number, AnyView out);

// Between the order in which rows arrive from ranks, (source, expert, unit), and that in which
// experts read them, (expert, source, unit); of each kind counts_PeU rows, of as many sources as
// counts are given for:
//   order_R [R] int32    the arrived row that is row r of the experts
//   place_R [R] int32    its inverse
void interleave_rows(Context& context, std::span<const int64_t> counts_PeU, int64_t experts,
                     int64_t units, AnyView order_R, AnyView place_R);

// y_RD[r] = x_TD[source_R[r]]                    fp32, bf16 or int8; source_R int32 in [0, rows)
void gather_rows(Context& context, AnyView x_TD, AnyView source_R, AnyView y_RD);

// y_TD[t] = add_TD[t] + sum_k gate_TK[t, k] * x_RD[row_TK[t, k]]     slots in order, fp32 sums, one
// rounding Null gate_TK: all ones (then this is the gradient of gather_rows). Null add_TD: nothing
// added. Dropped slots (-1) contribute nothing. add_TD may be y_TD.
void combine(Context& context, AnyView x_RD, AnyView row_TK, AnyView gate_TK, AnyView add_TD,
             AnyView y_TD);

// dx_RD[row_TK[t,k]] = gate_TK[t,k] * dy_TD[t];   dgate_TK[t,k] = dot(dy_TD[t], x_RD[row_TK[t,k]]),
// fp32; 0 for dropped slots.
void combine_backward(Context& context, AnyView dy_TD, AnyView x_RD, AnyView row_TK,
                      AnyView gate_TK, AnyView dx_RD, AnyView dgate_TK);

}  // namespace degu
