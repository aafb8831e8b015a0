// The way to a service, which can be cut off and mended.
import { connect, createServer } from "node:net";

export class Cable {
    #sockets = new Set();
    #isCut = false;

    /** @param {string} url @returns {Promise<Cable>} */
    static to(url) {
        const cable = new Cable();
        const { hostname, port } = new URL(url);
        cable.server = createServer((near) => {
            if (cable.#isCut) return void near.destroy();
            const far = connect(Number(port), hostname);
            for (const [one, other] of [[near, far], [far, near]]) {
                cable.#sockets.add(one);
                one.pipe(other);
                // The one end goes with the other.
                one.on("error", () => other.destroy());
                one.on("close", () => (cable.#sockets.delete(one), other.destroy()));
            }
        });
        return new Promise((resolve, reject) => cable.server.on("error", reject).listen(0, "127.0.0.1", () => {
            cable.url = `http://127.0.0.1:${cable.server.address().port}`;
            resolve(cable);
        }));
    }

    cut() {
        this.#isCut = true;
        for (const socket of this.#sockets) socket.destroy();
    }

    mend() {
        this.#isCut = false;
    }

    close() {
        this.cut();
        this.server.close();
    }
}
