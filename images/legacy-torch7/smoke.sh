#!/bin/sh
# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
#
# Train a network (nn, optim) to separate two clouds of points, and scale an image.
set -eu

cat >/tmp/smoke.lua <<'END'
require 'nn'
require 'optim'
require 'image'

torch.manualSeed(0)
local points = torch.cat(torch.randn(64, 2) * 0.3 - 1, torch.randn(64, 2) * 0.3 + 1, 1)
local kinds = torch.cat(torch.ones(64), torch.ones(64) * 2)
local model = nn.Sequential():add(nn.Linear(2, 2)):add(nn.LogSoftMax())
local criterion = nn.ClassNLLCriterion()
local weights, gradients = model:getParameters()
for _ = 1, 50 do
  optim.sgd(function()
    gradients:zero()
    local said = model:forward(points)
    local loss = criterion:forward(said, kinds)
    model:backward(points, criterion:backward(said, kinds))
    return loss, gradients
  end, weights, { learningRate = 0.5 })
end
local _, said = model:forward(points):max(2)
local accuracy = said:double():eq(kinds:view(128, 1)):sum() / 128
assert(accuracy >= 0.95, 'accuracy ' .. accuracy)
print(string.format('smoke: Trained a network with nn (accuracy %.3f)', accuracy))

local picture = image.scale(torch.rand(3, 8, 8), 4, 4)
assert(picture:size(2) == 4 and picture:size(3) == 4)
print('smoke: Scaled an image')
END
th /tmp/smoke.lua
