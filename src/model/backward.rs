//! Backward pass of a decoder: from the gradients at the final hidden rows to those of every tensor that trains.

use super::config::Learned;
use super::decoder::{At, Attend, Pass};
use super::layout::LayerBlocks;
use super::norm::{RowNorm, of_heads};
use super::params::Model;
use super::sink::{Linear, Sink};
use super::workspace::{Flow, Inner, Made, Workspace};
use crate::ops::{AttentionSaved, Direction, LinearShape, Ops, QkNormArgs, Role};

impl<O: Ops> Model<O> {
    /// Sends the gradients that [`Model::head`] left at all `n` rows down through the model into `sink`.
    pub fn backward(
        &mut self,
        ops: &O,
        pack: &O::Pack,
        n: usize,
        ws: &mut Workspace<O>,
        sink: &mut Sink<'_, O>,
    ) {
        let Workspace { x, rstd, scratch, flow, .. } = ws;
        let Some(Flow { dx, dh, .. }) = flow else { return };
        let Self { config, layout, params, grads, .. } = self;
        let grads = sink.of(grads);
        ops.zero(n * config.width, dx);
        RowNorm { ops, n, config, params, blocks: layout.norm }.backward(
            grads,
            dh,
            &x[config.layers],
            rstd,
            dx,
            &mut scratch.gains,
        );
        self.backward_from(ops, pack, n, ws, self.config.layers, sink);
    }

    /// Sends the gradients that [`Model::pull`] left behind the first `depth` layers down through these.
    ///
    /// Layers below all that trains are left out.
    pub fn backward_from(
        &mut self,
        ops: &O,
        pack: &O::Pack,
        n: usize,
        ws: &mut Workspace<O>,
        depth: usize,
        sink: &mut Sink<'_, O>,
    ) {
        let c = self.config.width;
        let lowest = self.layout.lowest_trained();
        let pass = Pass { ops, pack, n, role: Role::Student };
        for l in (lowest..depth).rev() {
            if ws.middle.again(l) {
                self.attention_half(pass, ws, At::new(l, true), &mut Attend::Pack);
            }
            self.mlp_backward(pass, ws, l, sink);
            self.attention_backward(pass, ws, (l, lowest), sink);
        }
        let Some(Flow { dx, .. }) = &ws.flow else { return };
        let grads = sink.of(&mut self.grads);
        if let Some(dtable) = grads[self.layout.embed].as_mut() {
            ops.embed_bwd(pack, c, self.config.embed_scale, dx, dtable);
        }
        if let (Some(Learned { rows, offset }), Some(b)) =
            (self.config.learned, self.layout.positions)
            && let Some(dtable) = grads[b].as_mut()
        {
            ops.positions_bwd(pack, c, (rows, offset), dx, dtable);
        }
    }

    /// Sends the gradient behind a layer back through its MLP.
    ///
    /// Where attention reads the same rows as the MLP it needs that gradient as it is: then the one at the normed input of
    /// the MLP waits in `dh` for the end of the layer.
    fn mlp_backward(
        &mut self,
        pass: Pass<'_, O>,
        ws: &mut Workspace<O>,
        l: usize,
        sink: &mut Sink<'_, O>,
    ) {
        let Pass { ops, n, role, .. } = pass;
        let at = At::new(l, true);
        let again = ws.inner.again(l);
        if again {
            self.gate_up(pass, ws, at, true);
            if self.config.post_norms {
                self.down(pass, ws, at);
            }
        }
        let Self { config, layout, params, grads: own, .. } = self;
        let blocks: &LayerBlocks = &layout.layers[l];
        let Workspace { x, middle, inner, normed, act, scratch, flow, .. } = ws;
        let Some(Flow { dx, dh, .. }) = flow else { return };
        let (s, Inner { gate_up, made }) = (middle.at(at.kept), inner.at(at.kept));
        let (c, f, width) = (config.width, config.ffn, config.mlp.width(config.ffn));
        let dy = match (blocks.post, made) {
            (Some([_, post]), Some(Made { rows, rstd })) => {
                ops.zero(n * c, dh);
                let norm = RowNorm { ops, n, config, params, blocks: post };
                norm.backward(sink.of(own), dx, rows, rstd, dh, &mut scratch.gains);
                &mut *dh
            }
            _ => &mut *dx,
        };
        let w = ops.view(&params[blocks.down], role, &mut scratch.matrix);
        let shape = LinearShape { n, o: c, i: f };
        ops.linear_dgrad_mlp(shape, config.mlp, dy, w, gate_up, act);
        let (matrix, bias) = (blocks.down, blocks.down_bias);
        sink.linear(ops, own, Linear { shape, dy, x: act, matrix, bias });
        let norm = RowNorm { ops, n, config, params, blocks: blocks.norm2 };
        let rows = if config.residual.parallel() { &x[l] } else { &s.rows };
        if !again {
            norm.forward(role, rows, None, normed, &mut s.rstd2, &mut scratch.gains);
        }
        let (matrix, bias) = (blocks.gate_up, blocks.gate_up_bias);
        let shape = LinearShape { n, o: width, i: c };
        sink.linear(ops, own, Linear { shape, dy: gate_up, x: normed, matrix, bias });
        let w = ops.view(&params[blocks.gate_up], role, &mut scratch.matrix);
        // dh is free from here on and carries the gradient at the normed rows.
        ops.linear_dgrad(shape, gate_up, w, dh);
        if !config.residual.parallel() {
            norm.backward(sink.of(own), dh, rows, &s.rstd2, dx, &mut scratch.gains);
        }
    }

    fn attention_backward(
        &mut self,
        pass: Pass<'_, O>,
        ws: &mut Workspace<O>,
        (l, lowest): (usize, usize),
        sink: &mut Sink<'_, O>,
    ) {
        let Pass { ops, pack, n, role } = pass;
        let at = At::new(l, true);
        // Where the whole layer was recomputed, its qkv rows are there.
        let again = ws.qkv.again(l) && !ws.middle.again(l);
        if again {
            self.qkv(pass, ws, at);
        }
        let rope = self.rope(l).clone();
        let Self { config, layout, params, grads: own, .. } = self;
        let blocks: &LayerBlocks = &layout.layers[l];
        let Workspace { x, qkv: rooms, middle, normed, scratch, flow, .. } = ws;
        let Some(Flow { dx, dh, dqkv, dattn }) = flow else { return };
        let (rows, s) = (rooms.at(at.kept), middle.at(at.kept));
        let heads = config.heads(l);
        let (c, qkv, hd) = (config.width, heads.qkv_width(), heads.out_width());
        // dh is free, unless a gradient waits in it for the end of the layer, and no model has both.
        let dy = match (blocks.post, &s.made) {
            (Some([post, _]), Some(Made { rows, rstd })) => {
                ops.zero(n * c, dh);
                let norm = RowNorm { ops, n, config, params, blocks: post };
                norm.backward(sink.of(own), dx, rows, rstd, dh, &mut scratch.gains);
                &mut *dh
            }
            _ => &mut *dx,
        };
        let (matrix, bias) = (blocks.out, blocks.out_bias);
        let shape = LinearShape { n, o: c, i: hd };
        sink.linear(ops, own, Linear { shape, dy, x: &s.attn, matrix, bias });
        let w = ops.view(&params[blocks.out], role, &mut scratch.matrix);
        ops.linear_dgrad(shape, dy, w, dattn);
        ops.attention_bwd(
            pack,
            heads,
            AttentionSaved { qkv: &rows.rows, out: &s.attn, lse: &s.lse },
            dattn,
            dqkv,
        );
        ops.rope(pack, heads, &rope, Direction::Backward, dqkv);
        if let (Some(raw), Some(rstd), Some([q, k])) = (&rows.raw, &rows.rstd, blocks.qk_norm) {
            let [sq, sk] = &mut scratch.gains;
            let gains = [ops.view(&params[q], role, sq), ops.view(&params[k], role, sk)];
            let (low, high) = sink.of(own).split_at_mut(k);
            let dgains = match (low[q].as_mut(), high[0].as_mut()) {
                (Some(dq), Some(dk)) => Some([dq, dk]),
                _ => None,
            };
            let args = QkNormArgs { n, heads, norm: of_heads(config), raw, gains };
            ops.qk_norm_bwd(args, rstd, dqkv, dgains);
        }
        let norm = RowNorm { ops, n, config, params, blocks: blocks.norm1 };
        if !again {
            norm.forward(role, &x[l], None, normed, &mut s.rstd1, &mut scratch.gains);
        }
        let (matrix, bias) = (blocks.qkv, blocks.qkv_bias);
        let shape = LinearShape { n, o: qkv, i: c };
        sink.linear(ops, own, Linear { shape, dy: dqkv, x: normed, matrix, bias });
        // Below the lowest layer that trains only a trained embedding (or norm) asks for a gradient.
        let below = [Some(layout.embed), layout.positions, Some(blocks.norm1.gain)];
        let grads = sink.of(own);
        let wanted = below.into_iter().flatten().any(|b| grads[b].is_some());
        if l > lowest || wanted {
            let w = ops.view(&params[blocks.qkv], role, &mut scratch.matrix);
            // A gradient that waits in dh must not be overwritten; the one at attention's output is used up.
            let to = if config.residual.parallel() { &mut *dattn } else { &mut *dh };
            ops.linear_dgrad(shape, dqkv, w, to);
            norm.backward(sink.of(own), to, &x[l], &s.rstd1, dx, &mut scratch.gains);
        }
        if config.residual.parallel() {
            RowNorm { blocks: blocks.norm2, ..norm }.backward(
                sink.of(own),
                dh,
                &x[l],
                &s.rstd2,
                dx,
                &mut scratch.gains,
            );
        }
    }
}
