// Records from the microphone into a WAV of 16 bits and 16,000 samples a second. No library, no network.

export const RATE = 16000;
export const LONGEST = 30; // seconds; a message above 10 MB would be lost on its way to the kernel

/** One channel of samples between -1 and 1 as the bytes of a WAV file. */
export function encodeWav(samples, rate = RATE) {
  const view = new DataView(new ArrayBuffer(44 + 2 * samples.length));
  const text = (at, word) => [...word].forEach((c, i) => view.setUint8(at + i, c.charCodeAt(0)));
  text(0, "RIFF");
  view.setUint32(4, 36 + 2 * samples.length, true);
  text(8, "WAVEfmt ");
  view.setUint32(16, 16, true);
  view.setUint16(20, 1, true);
  view.setUint16(22, 1, true);
  view.setUint32(24, rate, true);
  view.setUint32(28, 2 * rate, true);
  view.setUint16(32, 2, true);
  view.setUint16(34, 16, true);
  text(36, "data");
  view.setUint32(40, 2 * samples.length, true);
  samples.forEach((value, i) => view.setInt16(44 + 2 * i, Math.round(32767 * Math.min(1, Math.max(-1, value))), true));
  return view;
}

/** Whatever the browser recorded, as samples of one channel at our rate. */
async function decode(blob) {
  const context = new AudioContext();
  try {
    const sound = await context.decodeAudioData(await blob.arrayBuffer());
    const offline = new OfflineAudioContext(1, Math.max(1, Math.ceil(sound.duration * RATE)), RATE);
    const source = offline.createBufferSource();
    source.buffer = sound; // more channels than one are mixed by the context, another rate is changed
    source.connect(offline.destination);
    source.start();
    return (await offline.startRendering()).getChannelData(0);
  } finally {
    context.close();
  }
}

function render({ model, el }) {
  const button = document.createElement("button");
  button.className = "jupyter-widgets jupyter-button widget-button ftnb-record";
  const said = document.createElement("span");
  said.className = "ftnb-quiet ftnb-record-said";
  said.setAttribute("role", "status");
  el.append(button, said);
  let recorder = null;
  let timer = null;

  const show = () => {
    button.textContent = recorder ? "Stop recording" : "Record";
    button.title = recorder ? "Stop, and ask the model about what you said" : "Ask the model about something you say";
    button.setAttribute("aria-pressed", String(Boolean(recorder)));
    button.disabled = !recorder && model.get("disabled");
  };
  const stop = () => {
    clearTimeout(timer);
    if (recorder?.state === "recording") recorder.stop();
  };
  const start = async () => {
    if (!navigator.mediaDevices?.getUserMedia || typeof MediaRecorder === "undefined") {
      said.textContent = "This page may not use a microphone; upload a recording instead.";
      return;
    }
    let stream;
    try {
      stream = await navigator.mediaDevices.getUserMedia({ audio: true });
    } catch (error) {
      said.textContent = `No microphone: ${error.message || error.name}. Allow it for this page, or upload a recording.`;
      return;
    }
    const parts = [];
    recorder = new MediaRecorder(stream);
    recorder.ondataavailable = (event) => parts.push(event.data);
    recorder.onstop = async () => {
      stream.getTracks().forEach((track) => track.stop());
      const type = recorder.mimeType;
      recorder = null;
      show();
      try {
        said.textContent = "";
        model.send({ type: "recorded" }, undefined, [encodeWav(await decode(new Blob(parts, { type })))]);
      } catch (error) {
        said.textContent = `The recording cannot be read: ${error.message || error.name}.`;
      }
    };
    recorder.start();
    said.textContent = `Recording, at most ${LONGEST} seconds …`;
    timer = setTimeout(stop, 1000 * LONGEST);
    show();
  };
  button.addEventListener("click", () => (recorder ? stop() : start()));
  model.on("change:disabled", show);
  show();
  return () => {
    stop();
    model.off("change:disabled", show);
  };
}

export default { render };
