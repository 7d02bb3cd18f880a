-- SPDX-License-Identifier: Apache-2.0
--
-- KEYS: one that remembers the last exchange of this gateway; the gateways; a bucket each.
-- ARGV: the number of this exchange; the gateway's name; the window; the time of the oldest charge
-- by this server's clock, 0 where that is not known; then for each bucket what to charge and what
-- one gateway may hold at most; all in us.
-- Returns how many gateways there are, the time, and how far each bucket is ahead; below 0 it is
-- empty.
local t = redis.call('TIME')
local now = t[1] * 1000000 + t[2]
redis.call('ZADD', KEYS[2], now, ARGV[2])
redis.call('ZREMRANGEBYSCORE', KEYS[2], '-inf', now - 5000000)
redis.call('PEXPIRE', KEYS[2], 60000)
local gateways = redis.call('ZCARD', KEYS[2])
-- A gateway that got no answer asks again: what it tells counts once.
local told = redis.call('GET', KEYS[1]) == ARGV[1]
redis.call('SET', KEYS[1], ARGV[1], 'PX', 60000)
local window, from = tonumber(ARGV[3]), tonumber(ARGV[4])
from = math.min(math.max(from, now - 2000000), now)
local out = {gateways, now}
for i = 3, #KEYS do
  local charge, room = tonumber(ARGV[2 * i - 1]), tonumber(ARGV[2 * i])
  -- As if all were charged when the first may have been: what this bucket holds is never more
  -- than if each request had been charged here at its time.
  local held = tonumber(redis.call('GET', KEYS[i]) or 0)
  if not held or held ~= held then
    held = 0 -- somebody else wrote there
  end
  local at = math.max(held, from)
  if not told then
    at = math.max(at + charge, from)
  end
  -- A burst of each gateway is the most that can be owed; more there is only when this
  -- server's clock went back.
  at = math.min(at, now + gateways * (room + window))
  redis.call('SET', KEYS[i], string.format('%.0f', at), 'PX', math.ceil(math.max(at - now, 0) / 1000) + 2000)
  out[i] = at - now
end
return out
