-- Refuse inference requests that would end Triton, and those that no client of a served model sends.
--
-- Triton 2.51 ends at `classification` of a BYTES output and at deeply nested JSON. A compressed body may become as large as
-- the memory. The steps of a model are asked by its ensemble only. See SECURITY.md. Each request is complete here: the
-- filter before this one waits for its end, which also joins a body of a million tiny chunks.

local MOST_JSON_BYTES = 1048576
local MOST_BRACKETS = 1000
local MOST_FIELDS = 1000

local CLASSIFICATION = "expected a request without 'classification', got one with it; sort the scores yourself"

local function check_model(name)
  for _, suffix in ipairs({"_preprocess", "_engine", "_postprocess"}) do
    if name:match(suffix .. "$") or name:match(suffix .. "_%d+$") then
      return "expected a model, got a step of one, which is closed from outside"
    end
  end
end

-- The JSON is at most the beginning of the body: an image is no text that JSON can carry.
local function check_http(encoding, length, body)
  if encoding then return "expected a body without content-encoding, got a compressed one" end
  length = (length or ""):match("^%d+$") and tonumber(length)
  if not length or length > math.min(MOST_JSON_BYTES, body:length()) then
    return "expected the image as binary data after at most " .. MOST_JSON_BYTES .. " bytes of JSON, with the header "
      .. "Inference-Header-Content-Length, which may be 0"
  end
  if length == 0 then return end
  local json = body:getBytes(0, length)
  local _, brackets = json:gsub("[%[{]", "")
  if brackets > MOST_BRACKETS then
    return "expected at most " .. MOST_BRACKETS .. " lists and objects in the JSON, got " .. brackets
  end
  json = json:gsub("\\u00(%x%x)", function(code) return string.char(tonumber(code, 16)) end)
  if json:find('"classification"', 1, true) then return CLASSIFICATION end
end

-- Returns the length that begins at a position, and the position after it.
local function read_length(body, position)
  local value, factor = 0, 1
  for _ = 1, 5 do
    if position >= body:length() then return end
    local byte = body:getBytes(position, 1):byte()
    value, factor, position = value + byte % 128 * factor, factor * 128, position + 1
    if byte < 128 then return value, position end
  end
end

-- A message of gRPC: a byte for its compression, four for its length, and fields. All fields of a ModelInferRequest are
-- texts or messages, with numbers from 1 to 7.
local function check_grpc(body)
  local size = body:length()
  if size < 5 or body:getBytes(0, 1):byte() ~= 0 then return "expected a message without compression" end
  local a, b, c, d = body:getBytes(1, 4):byte(1, 4)
  local broken = "expected one ModelInferRequest of at most " .. MOST_FIELDS .. " fields, got another message"
  if ((a * 256 + b) * 256 + c) * 256 + d ~= size - 5 then return broken end
  local position = 5
  for _ = 1, MOST_FIELDS do
    if position == size then return end
    local tag = body:getBytes(position, 1):byte()
    local length, start = read_length(body, position + 1)
    if not length or start + length > size or tag % 8 ~= 2 or tag < 10 or tag > 58 then return broken end
    local refusal
    if tag == 10 then -- model_name
      refusal = length > 0 and check_model(body:getBytes(start, length))
    elseif tag == 50 then -- outputs
      refusal = length > 0 and body:getBytes(start, length):find("classification", 1, true) and CLASSIFICATION
    end
    if refusal then return refusal end
    position = start + length
  end
  return broken
end

function envoy_on_request(handle)
  local headers = handle:headers()
  local path = headers:get(":path"):match("^[^?]*")
  local model = path:match("^/v2/models/([^/]+).*/infer$")
  local is_grpc = path == "/inference.GRPCInferenceService/ModelInfer"
  if not model and not is_grpc then return end
  -- As a form, which curl calls any body, Triton would take it apart on its stack and end.
  if not is_grpc then headers:replace("content-type", "application/octet-stream") end
  local encoding, length = headers:get("content-encoding"), headers:get("inference-header-content-length")
  local body = handle:body() -- waits; the headers cannot be read after it
  if not body then return end
  local is_well, refusal = pcall(function()
    if is_grpc then return check_grpc(body) end
    return check_model(model) or check_http(encoding, length, body)
  end)
  if not is_well then refusal = "expected a request that the gateway can read, got another" end -- Envoy would pass it on
  if not refusal then return end
  -- The local_reply_config of envoy.yaml puts the text into JSON; it has a text of its own for other statuses.
  local status = is_grpc and {[":status"] = "200", ["grpc-status"] = "3"} or {[":status"] = "422"}
  handle:respond(status, refusal)
end
